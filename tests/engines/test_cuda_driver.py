"""The branch on the device, built by NVIDIA's bindings in a driver that is a stand-in (`fake_cuda`)."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.fake_cuda import CODE, FakeDriver, build, in_a_process, need_bindings

OUT_OF_MEMORY, UNSUPPORTED = 2, "CUDA_ERROR_NOT_SUPPORTED"
HOPPER = (9, 0)


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stand-in. It is never loaded here, where other tests may have the real one."""
    need_bindings()
    folder = tmp_path_factory.mktemp("fake_cuda")
    try:
        build(folder)
    except FileNotFoundError:
        pytest.skip("there is no g++ to compile the stand-in with")
    return folder


def conditional() -> Any:
    """The module under test, with code that the stand-in can load in place of compiled code."""
    from dicache_compile.engines.cuda import conditional, predicate

    predicate.compile_kernel = lambda _: CODE
    return conditional


class Step:
    """Three graphs as captures would have made them. The probe copies `decides` over `reuse` when it runs."""

    def __init__(self, fake: FakeDriver, deep: tuple[str, ...] = ("KERNEL",), estimate: tuple[str, ...] = ("KERNEL",)):
        self.decides, self.reuse = ctypes.c_bool(False), ctypes.c_bool(False)
        self.probe = fake.graph("probe", "MEMSET", "KERNEL", "KERNEL")
        self.deep, self.estimate = fake.graph("deep", *deep), fake.graph("estimate", *estimate)
        fake.copies(self.probe, self.decides, self.reuse)

    def compose(self, device: int = 0) -> Any:
        return composed(self, ctypes.addressof(self.reuse), device)


def composed(step: Step, address: int, device: int = 0) -> Any:
    module = conditional()
    branch = module.Branch(address, (step.deep,), (step.estimate,))
    return module.ConditionalGraph(device, HOPPER, (step.probe, branch))


def refusal(run: Any) -> str:
    """The words with which something is refused."""
    from dicache_compile.engines.cuda.driver import CudaError

    with pytest.raises(CudaError) as raised:
        run()
    return str(raised.value)


@in_a_process
def test_the_stand_in_and_the_bindings_agree_on_the_layout_of_what_they_pass(fake: FakeDriver) -> None:
    from cuda.bindings import driver

    kinds = [driver.CUDA_KERNEL_NODE_PARAMS, driver.CUDA_CONDITIONAL_NODE_PARAMS, driver.CUgraphNodeParams]
    assert fake.layout() == [driver.sizeof(kind) for kind in (*kinds, driver.CUgraphEdgeData)] == [72, 32, 256, 8]


@in_a_process
def test_the_graph_is_the_probe_then_the_choice_then_one_of_two_bodies(fake: FakeDriver) -> None:
    step = Step(fake)
    graph = step.compose()
    handle = next(line.split()[1] for line in fake.journal if line.startswith("handle"))
    assert fake.journal == [
        "create 1",
        "load machine code",
        "add 1.0 probe after nothing",
        f"handle {handle} default 1 flags 1",
        f"add 1.1 kernel 111111 shared 0 of {handle} {ctypes.addressof(step.reuse)} after 1.0",
        "add 1.2 if 2 else 3 after 1.1",
        "add 2.0 deep after nothing",
        "add 3.0 estimate after nothing",
        "instantiate 1",
    ]
    del graph


@in_a_process
def test_each_launch_runs_the_body_that_its_own_probe_asks_for(fake: FakeDriver) -> None:
    step = Step(fake)
    graph = step.compose()
    for reuse in (False, True, True, False):
        step.decides.value = reuse
        graph.launch(0)
    assert fake.runs == ["probe", "deep", "probe", "estimate", "probe", "estimate", "probe", "deep"]


def two_choices(fake: FakeDriver, nested: bool) -> tuple[Any, list[ctypes.c_bool]]:
    """A graph of two choices, one after the other or one in the deep way of the other, and what decides each."""
    decides, reuses = ([ctypes.c_bool(False), ctypes.c_bool(False)] for _ in range(2))
    named = {name: fake.graph(name, "KERNEL") for name in ("P", "D", "R", "P2", "D2", "R2")}
    for name, source, target in zip(("P", "P2"), decides, reuses, strict=True):
        fake.copies(named[name], source, target)
    module = conditional()
    second = module.Branch(ctypes.addressof(reuses[1]), (named["D2"],), (named["R2"],))
    deep = (named["D"], named["P2"], second) if nested else (named["D"],)
    first = module.Branch(ctypes.addressof(reuses[0]), deep, (named["R"],))
    parts = (named["P"], first) if nested else (named["P"], first, named["P2"], second)
    graph = module.ConditionalGraph(0, HOPPER, parts)
    graph.kept = reuses
    return graph, decides


@in_a_process
def test_two_rules_are_two_choices_of_one_graph_and_one_launch(fake: FakeDriver) -> None:
    graph, decides = two_choices(fake, nested=False)
    assert [line.split()[0] for line in fake.journal].count("create") == 1
    assert [line for line in fake.journal if line.startswith("instantiate")] == ["instantiate 1"]
    for first, second in ((False, False), (True, False), (False, True), (True, True)):
        before = len(fake.runs)
        decides[0].value, decides[1].value = first, second
        graph.launch(0)
        assert fake.runs[before:] == ["P", "R" if first else "D", "P2", "R2" if second else "D2"]


@in_a_process
def test_a_choice_inside_of_another_is_asked_in_its_deep_way(fake: FakeDriver) -> None:
    graph, decides = two_choices(fake, nested=True)
    for first, second, ran in (
        (False, False, ["D", "P2", "D2"]),
        (False, True, ["D", "P2", "R2"]),
        (True, True, ["R"]),
    ):
        before = len(fake.runs)
        decides[0].value, decides[1].value = first, second
        graph.launch(0)
        assert fake.runs[before:] == ["P", *ran]


@in_a_process
def test_a_choice_that_never_ran_leaves_the_deep_blocks_to_run(fake: FakeDriver) -> None:
    step = Step(fake)
    step.decides.value = True
    graph = step.compose()
    graph.launch(0)
    # Every launch begins from the default again, not from what the last one chose.
    fake.set_kernel_runs(False)
    graph.launch(0)
    assert fake.runs == ["probe", "estimate", "probe", "deep"]


@in_a_process
def test_a_launch_goes_to_the_stream_that_it_is_given(fake: FakeDriver) -> None:
    graph = Step(fake).compose()
    for stream in (0, 0x7F00_1234_5678):
        graph.launch(stream)
    assert fake.journal[-2:] == ["launch on 0", f"launch on {0x7F00_1234_5678}"]


@in_a_process
def test_the_kernel_gets_a_handle_and_an_address_of_64_bits(fake: FakeDriver) -> None:
    step, address = Step(fake), 0xFEDC_BA98_7654_3210
    graph = composed(step, address)
    handle = next(int(line.split()[1]) for line in fake.journal if line.startswith("handle"))
    assert handle >> 32
    assert any(f"of {handle} {address} after" in line for line in fake.journal)
    del graph


@in_a_process
def test_a_body_may_hold_kernels_copies_memory_sets_and_graphs_of_these(fake: FakeDriver) -> None:
    step = Step(fake, deep=("KERNEL", "MEMCPY", "MEMSET", "EMPTY"))
    fake.nest(step.estimate, fake.graph("inner", "KERNEL"))
    step.decides.value = True
    step.compose().launch(0)
    assert fake.runs == ["probe", "estimate", "inner"]


@in_a_process
def test_a_body_that_cannot_be_one_is_refused_by_name_before_anything_is_made(fake: FakeDriver) -> None:
    for kind in ("WAIT_EVENT", "HOST", "MEM_ALLOC"):
        said = refusal(Step(fake, deep=("KERNEL", kind, kind)).compose)
        assert said == f"the deep blocks cannot be a body of a conditional node: it has nodes of kind {kind}"
        assert kind in refusal(Step(fake, estimate=(kind,)).compose)
    assert "of kind HOST, WAIT_EVENT" in refusal(Step(fake, deep=("WAIT_EVENT", "HOST")).compose)
    assert "the reused blocks" in refusal(Step(fake, estimate=()).compose)
    assert "it is empty" in refusal(Step(fake, deep=()).compose)
    assert not fake.journal


@in_a_process
def test_what_only_the_driver_can_see_is_refused_by_the_driver(fake: FakeDriver) -> None:
    step, other = Step(fake), Step(fake)
    fake.nest(step.deep, fake.graph("inner", "HOST"))
    assert UNSUPPORTED in refusal(step.compose)
    other.probe = fake.graph("probe", "MEM_ALLOC")
    assert "CUDA_ERROR_INVALID_VALUE" in refusal(other.compose)
    assert [line for line in fake.journal if "create" in line or "destroy" in line][1::2] == ["destroy 1", "destroy 4"]


@in_a_process
def test_captures_of_another_context_than_the_current_one_are_refused_by_the_driver(fake: FakeDriver) -> None:
    step = Step(fake)
    fake.set_context(0xC0FFEE11111)
    assert UNSUPPORTED in refusal(step.compose)
    assert fake.journal[-1] == "destroy 1"


@in_a_process
def test_a_call_that_fails_is_told_by_the_drivers_name_and_frees_the_graph(fake: FakeDriver) -> None:
    step = Step(fake)
    for function in ("cuGraphAddChildGraphNode", "cuGraphInstantiateWithFlags"):
        fake.fail(function, OUT_OF_MEMORY)
        assert refusal(step.compose) == "CUDA_ERROR_OUT_OF_MEMORY (CUresult)"
        assert fake.journal[-1].startswith("destroy ")
    assert sum(line.startswith("create") for line in fake.journal) == 2
    assert sum(line.startswith("destroy") for line in fake.journal) == 2
    graph = step.compose()
    fake.fail("cuGraphLaunch", OUT_OF_MEMORY)
    assert refusal(lambda: graph.launch(0)) == "cuGraphLaunch: CUDA_ERROR_OUT_OF_MEMORY"


@in_a_process
def test_a_graph_that_is_dropped_is_destroyed_once(fake: FakeDriver) -> None:
    step = Step(fake)
    graph, other = step.compose(), step.compose()
    graph.launch(0)
    before = len(fake.journal)
    del graph
    gc.collect()
    assert fake.journal[before:] == ["destroy executable", "destroy 1"]
    other.launch(0)
    assert step.compose() is not None, "the captured graphs are still the caller's"


@in_a_process
def test_the_kernel_is_loaded_once_for_each_device(fake: FakeDriver) -> None:
    conditional()
    from dicache_compile.engines.cuda.predicate import kernel

    first = kernel(0, HOPPER)
    fake.set_context(0xC0FFEE11111)
    other = kernel(1, HOPPER)
    assert [kernel(0, HOPPER), kernel(1, HOPPER)] == [first, other]
    assert first != other
    assert fake.journal == ["load machine code"] * 2


@in_a_process
def test_it_is_known_why_there_can_be_no_branch_on_the_device(fake: FakeDriver) -> None:
    from dicache_compile.engines.cuda import driver

    assert driver.why_no_conditional() is None
    fake.set_version(12040)
    assert driver.why_no_conditional() == (
        "the CUDA driver is for CUDA 12.4, and conditional nodes with an ELSE need 12.8"
    )
    fake.set_version(12080)
    assert driver.why_no_conditional() is None
    fake.fail("cuDriverGetVersion", 999)
    assert refusal(driver.why_no_conditional) == "CUDA_ERROR_UNKNOWN (CUresult)"


@in_a_process
def test_bindings_that_are_old_or_missing_are_named() -> None:
    from dicache_compile.engines.cuda import driver

    driver.version = lambda _: "12.9.4"
    assert driver.why_no_conditional() == "cuda-bindings 12.9.4 is installed, and version 13 or later is needed"

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    driver.version = missing
    assert "pip install 'cuda-bindings>=13'" in str(driver.why_no_conditional())


@in_a_process
def test_the_stand_in_refuses_handles_that_are_unknown_used_or_destroyed(fake: FakeDriver) -> None:
    from cuda.bindings import driver

    from dicache_compile.engines.cuda.driver import checked

    invalid = (driver.CUresult.CUDA_ERROR_INVALID_VALUE, None)
    assert driver.cuGraphGetNodes(driver.CUgraph(init_value=64), 0)[0] == invalid[0]
    graph, context = checked(driver.cuGraphCreate(0)), checked(driver.cuCtxGetCurrent())
    assert driver.cuGraphAddChildGraphNode(graph, [], 0, driver.CUgraph(init_value=64)) == invalid
    assert driver.cuGraphAddChildGraphNode(graph, [driver.CUgraphNode()], 1, graph) == invalid
    branch = driver.CUgraphNodeParams()
    branch.type = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
    branch.conditional.handle = checked(driver.cuGraphConditionalHandleCreate(graph, context, 0, 0))
    branch.conditional.type = driver.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_IF
    branch.conditional.size, branch.conditional.ctx = 1, context
    assert driver.cuGraphInstantiate(graph, 0) == invalid, "a handle without a node"
    checked(driver.cuGraphAddNode(graph, [], None, 0, branch))
    assert driver.cuGraphAddNode(graph, [], None, 0, branch) == invalid, "a handle with two nodes"
    executable = checked(driver.cuGraphInstantiate(graph, 0))
    relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    assert int(checked(driver.cuThreadExchangeStreamCaptureMode(relaxed))) == 0
    for destroy, what in ((driver.cuGraphExecDestroy, executable), (driver.cuGraphDestroy, graph)):
        assert [int(destroy(what)[0]) for _ in range(2)] == [0, int(invalid[0])]
    assert driver.cuGraphLaunch(executable, 0) == (invalid[0],)
    assert driver.cuGraphInstantiate(graph, 0) == invalid
