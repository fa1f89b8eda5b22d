"""The passes on tiny graphs, by their text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn

from dicache_compile import DiCacheConfig
from dicache_compile.cut import Cut, cut
from dicache_compile.errors import UnsupportedGraphError
from dicache_compile.graph.dataflow import Dataflow
from dicache_compile.passes.partition import partition, why_not_splittable
from dicache_compile.passes.trunk import find_trunk
from dicache_compile.plan import AskedRule, Partition
from dicache_compile.write import single_graph
from tests import models
from tests.helpers.graphs import Mixer, Tiny, captured, graph_text, partition_text, tiny_inputs, trunk_text
from tests.helpers.published import published


def trunk_of(model: nn.Module, *args: Any, owners: tuple[str, ...] = ()) -> Any:
    gm, _ = captured(model, *args)
    flow = Dataflow(gm.graph)
    return find_trunk(gm, flow, owners), gm, flow


@torch.no_grad()
def cut_of(model: nn.Module, *args: Any, **config: Any) -> Cut:
    gm, examples = captured(model, *args)
    return cut(gm, examples, published(**config))


def assert_never_reads_backwards(found: Partition) -> None:
    for node, region in found.regions.items():
        for needed in node.all_input_nodes:
            assert needed not in found.regions or found.regions[needed].value <= region.value


def test_trunk_groups_nodes_by_the_list_entry_that_owns_them() -> None:
    trunk, _, _ = trunk_of(Tiny(2), *tiny_inputs())
    assert trunk_text(trunk) == (
        "blocks.0: scale getattr_1 matmul matmul_1 mul x_1\nblocks.1: scale_1 getattr_2 matmul_2 matmul_3 mul_1 x_2"
    )


@pytest.mark.parametrize(
    ("kind", "owners"),
    [
        (models.SingleStream, ("blocks",)),
        (models.TwoStream, ("joint_blocks",)),
        (models.Mixed, ("double_blocks", "single_blocks")),
        (models.Skips, ("down", "up")),
        (models.Controlled, ("blocks",)),
    ],
)
def test_trunk_joins_lists_that_carry_on_each_other(kind: type[models.Model], owners: tuple[str, ...]) -> None:
    model = models.make(kind)
    trunk, _, _ = trunk_of(model, *models.inputs(model, 0, 10))
    assert trunk.owners == owners
    assert len(trunk.blocks) == model.depth


class Refined(models.SingleStream):
    """The prompt goes through blocks of its own first, and is then joined with the image."""

    def __init__(self) -> None:
        super().__init__(depth=3)
        self.refiner = nn.ModuleList(models.Block(self.width, 2) for _ in range(2))

    def run(self, carried: models.Carried, first: int, last: int) -> models.Carried:
        text = carried["text"]
        for block in self.refiner:
            text = block(text, carried["time"])
        joint = super().run({**carried, "x": torch.cat((text, carried["x"]), dim=1)}, first, last)
        return {**joint, "x": joint["x"][:, text.shape[1] :]}


def test_trunk_leaves_a_refiner_of_the_prompt_out() -> None:
    model = models.make(Refined)  # type: ignore[type-var]
    trunk, _, _ = trunk_of(model, *models.inputs(model, 0, 10))
    assert trunk.owners == ("blocks",)


def test_trunk_refuses_a_graph_without_repeated_blocks() -> None:
    with pytest.raises(UnsupportedGraphError, match="no repeated transformer block found"):
        trunk_of(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), torch.randn(2, 4))


def test_trunk_refuses_a_single_block() -> None:
    with pytest.raises(UnsupportedGraphError, match=r"only one transformer block found \(blocks.0\)"):
        trunk_of(Tiny(1), *tiny_inputs())


def test_trunk_takes_the_lists_that_it_is_told_and_lists_what_would_match() -> None:
    assert trunk_of(Tiny(2), *tiny_inputs(), owners=("blocks",))[0].owners == ("blocks",)
    with pytest.raises(UnsupportedGraphError, match=r"no blocks in 'layers'; found: 'blocks' \(2 blocks\)"):
        trunk_of(Tiny(2), *tiny_inputs(), owners=("layers",))


def test_partition_places_each_node_where_it_is_needed() -> None:
    trunk, gm, flow = trunk_of(Tiny(2), *tiny_inputs())
    assert partition_text(partition(gm, flow, trunk, AskedRule(1))) == (
        "prologue  x = relu(l_hidden_states_)\n"
        "prologue  scale = sin(l_timestep_)\n"
        "probe     getattr_1 = getattr(x, mT)\n"
        "probe     matmul = matmul(x, getattr_1)\n"
        "probe     matmul_1 = matmul(matmul, x)\n"
        "probe     mul = mul(matmul_1, scale)\n"
        "probe     x_1 = add(x, mul)\n"
        # What only the deep blocks need of the timestep is not paid for by a step that skips them.
        "deep      scale_1 = sin(l_timestep_)\n"
        "deep      getattr_2 = getattr(x_1, mT)\n"
        "deep      matmul_2 = matmul(x_1, getattr_2)\n"
        "deep      matmul_3 = matmul(matmul_2, x_1)\n"
        "deep      mul_1 = mul(matmul_3, scale_1)\n"
        "deep      x_2 = add(x_1, mul_1)\n"
        "epilogue  tanh = tanh(x_2)\n"
        "epilogue  exp = exp(l_timestep_)\n"
        "epilogue  add_2 = add(tanh, exp)\n"
        "stream    x=x h=x_1 y=x_2\n"
        "crossing  x x_1"
    )


@pytest.mark.parametrize("kind", models.ALL)
def test_partition_never_reads_backwards(kind: type[models.Model]) -> None:
    model = models.make(kind, depth=4)
    gm, examples = captured(model, *models.inputs(model, 0, 10))
    for depth in range(4):
        assert_never_reads_backwards(cut(gm, examples, DiCacheConfig(probe_depth=depth)).partition)


def test_partition_measures_the_image_and_not_a_text_of_the_same_shape() -> None:
    model = models.make(models.Mixed)
    latents, timestep, prompt = models.inputs(model, 0, 10, tokens=3)
    assert latents.shape == prompt.shape
    found = cut_of(model, latents, timestep, prompt)
    (stream,) = found.partition.carried
    upstream = {node.name for node in Dataflow(found.partition.graph_module.graph).upstream([stream.x])}
    assert "l_hidden_states_" in upstream
    assert "l_prompt_" not in upstream


@torch.no_grad()
def test_partition_does_not_take_a_gate_of_the_streams_size_for_where_it_starts() -> None:
    # With one token, what scales a branch is as large as the stream; and only a linear leads to where that starts.
    model = models.make(models.Skips)
    found = cut_of(model, *models.inputs(model, 0, 4, tokens=1), probe_depth=3)
    assert [(stream.x.name, stream.h.name) for stream in found.partition.carried] == [("x", "x_6")]


def test_partition_refuses_a_depth_that_skips_nothing() -> None:
    trunk, gm, flow = trunk_of(Tiny(3), *tiny_inputs())
    assert why_not_splittable(trunk, 2) is None
    with pytest.raises(UnsupportedGraphError, match=r"probe_depth=3 leaves nothing to skip \(3 blocks found\)"):
        partition(gm, flow, trunk, AskedRule(3))


def test_partition_refuses_random_numbers_in_the_deep_blocks_and_names_the_line() -> None:
    class Random(Mixer):
        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return super().forward(x, time) + torch.rand_like(x)

    model = Tiny(2)
    model.blocks[1] = Random()
    with pytest.raises(UnsupportedGraphError, match=r"draws random numbers: `rand_like` \(test_passes.py:\d+: return"):
        cut_of(model, *tiny_inputs())


def test_partition_allows_random_numbers_before_the_deep_blocks() -> None:
    class Jittered(Tiny):
        def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden_states + torch.rand_like(hidden_states), timestep)

    assert cut_of(Jittered(2), *tiny_inputs()).partition.carried


def test_partition_refuses_deep_blocks_that_write_to_a_buffer() -> None:
    class Watching(Mixer):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            self.seen.copy_(x.mean())
            return super().forward(x, time)

    model = Tiny(2)
    model.blocks[1] = Watching()
    with pytest.raises(
        UnsupportedGraphError, match=r"writes to an input or a buffer of the model: `copy_` \(test_pass"
    ):
        cut_of(model, *tiny_inputs())


def test_partition_refuses_a_deep_result_without_a_counterpart() -> None:
    class Wider(Tiny):
        def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            x = self.blocks[1](self.blocks[0](hidden_states, timestep), timestep)
            return self.blocks[2](torch.cat((x, x), dim=2).mT, timestep)

    with pytest.raises(UnsupportedGraphError, match=r"of shape \(2, 8, 4\) has no counterpart"):
        cut_of(Wider(3), *tiny_inputs())


def test_partition_keeps_apart_what_an_in_place_trunk_shares() -> None:
    class InPlace(Mixer):
        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            x += torch.matmul(torch.matmul(x, x.mT), x) * time
            return x

    model = Tiny(3)
    model.blocks = nn.ModuleList(InPlace() for _ in range(3))
    text = partition_text(cut_of(model, *tiny_inputs()).partition)
    assert "iadd" not in text
    assert "stream    x=x h=x_1 y=x_3" in text


def test_partition_keeps_a_write_with_what_reads_it_later() -> None:
    class Rotary(Mixer):
        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            turned = torch.empty_like(x)
            turned[..., 0::2] = x[..., 1::2]
            turned[..., 1::2] = -x[..., 0::2]
            return super().forward(x, time) + turned

    model = Tiny(2)
    model.blocks = nn.ModuleList(Rotary() for _ in range(2))
    found = cut_of(model, *tiny_inputs())
    regions = {node.name: region.name for node, region in found.partition.regions.items()}
    assert [regions[name] for name in ("setitem", "setitem_1", "setitem_2", "setitem_3")] == ["PROBE"] * 2 + [
        "DEEP"
    ] * 2


def test_autocast_stands_around_the_same_nodes_in_every_piece() -> None:
    class Casting(Tiny):
        def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                x = hidden_states.relu()
                for block in self.blocks:
                    x = block(x, timestep).float()
            return x.tanh()

    model, args = Casting(2), tiny_inputs()
    program = cut_of(model, *args).program
    for piece in map(program.piece, ("P", "DE")):
        text = graph_text(piece.graph_module.graph)
        assert text.index("_enter_autocast") < text.index("matmul") < text.index("_exit_autocast")
    assert "_enter_autocast" not in graph_text(program.piece("RE").graph_module.graph).partition("tanh")[2]


def test_a_deep_piece_takes_the_new_anchor_before_the_epilogue() -> None:
    deep = cut_of(Tiny(2), *tiny_inputs()).program.piece("DE")
    lines = graph_text(deep.graph_module.graph).splitlines()
    assert lines[:6] == [
        "scale_1 = sin(l_timestep_)",
        "getattr_2 = getattr(x_1, mT)",
        "matmul_2 = matmul(x_1, getattr_2)",
        "matmul_3 = matmul(matmul_2, x_1)",
        "mul_1 = mul(matmul_3, scale_1)",
        "x_2 = add(x_1, mul_1)",
    ]
    assert [text.partition(" = ")[2].partition(",")[0] for text in lines if " = copy_(" in text] == [
        "copy_(state_anchors",
        "copy_(state_r_0_0",
        "copy_(state_r_0_1",
        "copy_(state_p_0_0",
        "copy_(state_p_0_1",
        "copy_(state_anchor_gap_0",
    ]
    # The epilogue could write to y.
    assert [text.partition(" = ")[2] for text in lines[-3:]] == ["tanh(x_2)", "exp(l_timestep_)", "add(tanh, exp)"]


def test_the_piece_of_a_reused_step_estimates_from_the_two_anchors() -> None:
    estimate = cut_of(Tiny(2), *tiny_inputs()).program.piece("RE")
    assert set(map(str, estimate.reads)) == {
        "state.r.0.0",
        "state.r.0.1",
        "state.anchors",
        "aid.0",
        "x",
        "l_timestep_",
    }
    assert graph_text(estimate.graph_module.graph) == (
        # The ring: who wrote last is the newest.
        "sub = sub(state_anchors, 1)\n"
        "sub_1 = sub(sub, 0)\n"
        "mod = mod(sub_1, 2)\n"
        "eq = eq(mod, 1)\n"
        "where = where(eq, state_r_0_1, state_r_0_0)\n"
        "sub_2 = sub(state_anchors, 1)\n"
        "sub_3 = sub(sub_2, 1)\n"
        "mod_1 = mod(sub_3, 2)\n"
        "eq_1 = eq(mod_1, 1)\n"
        "where_1 = where(eq_1, state_r_0_1, state_r_0_0)\n"
        # y = x + R2 + gamma (R1 - R2), or x + R1 with one anchor
        "gt = gt(state_anchors, 1)\n"
        "float_1 = float(where)\n"
        "float_2 = float(where_1)\n"
        "float_3 = float(x)\n"
        "sub_8 = sub(float_1, float_2)\n"
        "mul = mul(aid_0, sub_8)\n"
        "add = add(float_2, mul)\n"
        "where_4 = where(gt, add, float_1)\n"
        "add_1 = add(float_3, where_4)\n"
        "to = to(add_1, torch.float32)\n"
        "tanh = tanh(to)\n"
        "exp = exp(l_timestep_)\n"
        "add_2 = add(tanh, exp)"
    )


def test_the_single_graph_has_one_cond() -> None:
    single = single_graph(cut_of(Tiny(2), *tiny_inputs()).program)
    lines = graph_text(single.graph_module.graph).splitlines()
    (cond,) = [text for text in lines if " = cond(" in text]
    assert "reused_branch, deep_branch" in cond
    gives = [str(value) for value in single.gives]
    assert gives[0] == "output.0"
    written = {name for name in gives if name.startswith("state.")}
    assert {"state.h_prev.0", "state.r.0.0", "state.accumulated", "state.log"} <= written
    assert "state.limits" not in written


def test_the_users_graph_stays_as_it_is() -> None:
    class InPlace(Tiny):
        def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            x = hidden_states.relu()
            for block in self.blocks:
                x += block(x, timestep)
            return x

    gm, examples = captured(InPlace(2), *tiny_inputs())
    before = graph_text(gm.graph)
    with torch.no_grad():
        cut(gm, examples, DiCacheConfig())
    assert graph_text(gm.graph) == before


@pytest.mark.parametrize(
    ("name", "expected"),
    [("timestep", "timestep"), ("t", "t"), ("sigma", "sigma"), ("noise_level", "noise_level"), ("clock", "clock")],
)
def test_inputs_finds_the_timestep_by_name_or_by_the_sine_that_is_taken(name: str, expected: str) -> None:
    from dicache_compile.graph.input_names import input_name

    source = f"def forward(self, hidden_states, {name}): return Tiny.forward(self, hidden_states, {name})"
    scope: dict[str, Any] = {"Tiny": Tiny}
    exec(source, scope)
    kind = type("Named", (Tiny,), {"forward": scope["forward"]})
    assert input_name(cut_of(kind(2), *tiny_inputs()).inputs.timestep) == expected


def test_inputs_refuses_a_graph_without_a_timestep_and_names_what_there_is() -> None:
    class Timeless(Tiny):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(hidden_states, torch.ones(()))

    with pytest.raises(UnsupportedGraphError, match=r"no timestep found among the tensor inputs \(hidden_states\)"):
        cut_of(Timeless(2), tiny_inputs()[0])
    with pytest.raises(
        UnsupportedGraphError, match=r"no tensor input named 'clock'; the tensor inputs are: .*timestep"
    ):
        cut_of(Tiny(2), *tiny_inputs(), timestep_input="clock")


def test_inputs_are_conditions_unless_they_are_the_latents_or_the_timestep() -> None:
    from dicache_compile.graph.input_names import input_name

    model = models.make(models.Mixed)
    found = cut_of(model, *models.inputs(model, 0, 10))
    assert [input_name(node) for node in found.inputs.conditions] == ["prompt"]


def test_a_pass_keeps_the_metadata_of_every_placeholder() -> None:
    found = cut_of(Tiny(2), *tiny_inputs())
    nodes: list[fx.Node] = list(found.placeholders)
    assert all(hasattr(node, "_dynamo_source") for node in nodes)


@pytest.mark.parametrize(
    "write",
    [
        lambda x: nn.functional.leaky_relu(x, 0.01, True),
        lambda x: nn.functional.relu(x, inplace=True),
        lambda x: x.clamp_(min=-1).exp_(),
    ],
)
def test_partition_refuses_deep_blocks_that_write_to_the_stream(write: Any) -> None:
    class Writing(Mixer):
        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            write(x)
            return super().forward(x, time)

    model = Tiny(3)
    model.blocks[1] = Writing()
    with pytest.raises(UnsupportedGraphError, match="writes in place"):
        cut_of(model, *tiny_inputs())


def test_trunk_refuses_lists_in_the_wrong_order() -> None:
    model = models.make(models.Mixed)
    with pytest.raises(UnsupportedGraphError, match="give trunk= its lists in the order of their run"):
        trunk_of(model, *models.inputs(model, 0, 10), owners=("single_blocks", "double_blocks"))
