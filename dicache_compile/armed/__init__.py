"""Steps of an announced generation that go straight to the compiled step, past what torch.compile does before a call.

Between the first and the last step of a generation its model does not change. So what Dynamo checks of the model, and
the weights that it gathers, are those of the step before.
"""

from .calling import Armed, reason_of

__all__ = ["Armed", "reason_of"]
