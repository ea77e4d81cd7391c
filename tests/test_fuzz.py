"""Random graphs: a fixed few here, thousands with ``--sweep``; a failure shows the smallest graph and the seed."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch

from torch2trt.converters import registry

hypothesis = pytest.importorskip("hypothesis")

from tests.fuzzing import Graph, Outcome, Spec, Worker, check, graphs  # noqa: E402  # they need hypothesis

EXAMPLES, SWEPT = 60, 3000
"""How many graphs there are without and with ``--sweep``, where ``--fuzz-examples`` does not say."""


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def fuzz(run: Callable[[Graph], Outcome], seed: int, examples: int) -> Counter[str]:
    """Check one graph for each seed from this one on, and count what became of them."""
    known: dict[str, Outcome] = {}
    for each in range(seed, seed + examples):
        fuzz_one(run, each, known)
    counts = Counter(outcome.status for outcome in known.values())
    print(f"seeds {seed} to {seed + examples - 1}: {dict(counts)}")
    return counts


def fuzz_one(run: Callable[[Graph], Outcome], seed: int, known: dict[str, Outcome]) -> None:
    """Check the graph of one seed, and where it fails find the smallest like it."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        # The simplest graph comes first in every run; more in one run would be variations of the second.
        max_examples=2,
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(graphs())
    def check_one(graph: Graph) -> None:
        source = repr(graph)
        if source not in known:
            known[source] = run(graph)
        outcome = known[source]
        hypothesis.note(f"again with: --fuzz-seed={seed} --fuzz-examples=1")
        assert outcome.status in ("right", "refused"), f"{outcome.status}: {outcome.detail}"

    check_one()


def test_random_graphs(worker: Worker, pytestconfig: pytest.Config) -> None:
    seed, examples = pytestconfig.getoption("fuzz_seed"), pytestconfig.getoption("fuzz_examples")
    counts = fuzz(worker.check, seed, examples or EXAMPLES)
    assert counts["right"] > 3 * counts["refused"]


@pytest.mark.sweep
@pytest.mark.timeout(0)
def test_thousands_of_random_graphs(worker: Worker, pytestconfig: pytest.Config) -> None:
    seed, examples = pytestconfig.getoption("fuzz_seed"), pytestconfig.getoption("fuzz_examples")
    fuzz(worker.check, seed, examples or SWEPT)


# The fuzzer itself ----------------------------------------------------------------------------------------------------


def test_a_failure_shows_the_smallest_graph_and_the_seed() -> None:
    def wrong(graph: Graph) -> Outcome:
        return Outcome("wrong", "why") if "softmax" in graph.source else Outcome("right")

    with pytest.raises(AssertionError, match="wrong: why") as caught:
        fuzz(wrong, 3, 200)
    notes = "\n".join(caught.value.__notes__)
    assert "--fuzz-examples=1" in notes
    assert "def forward(self, x0):" in notes
    assert "    v0 = F.softmax(x0," in notes
    assert "    v1" not in notes


def _falls(graph: Graph) -> Outcome:
    if "v2" in graph.source:
        os.abort()
    if "v1" in graph.source:
        time.sleep(60)
    return Outcome("right")


def test_a_crash_and_a_hang_are_failures() -> None:
    worker = Worker(1.0, _falls)
    spec = {"x0": Spec((2,), "float32")}
    made = [Graph(spec, {}, (f"{name} = x0 + 1",), (name,), (3, 3, 3), None, False) for name in ("v0", "v1", "v2")]
    assert [worker.check(graph).status for graph in (*made, made[0])] == ["right", "hang", "crash", "right"]
    worker.close()


def test_a_graph_that_converts_wrongly_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "v0 = torch.sin(x0)", "v1 = v0 @ self.w0", "v2 = (v1 > 0).to(torch.int64)"
    given = {"x0": Spec(("n", 4), "float32")}
    graph = Graph(given, {"w0": Spec((4, 2), "float32")}, lines, ("v1", "v2"), (1, 3, 5), "fp32", True)
    assert check(graph) == Outcome("right")
    find = registry.find
    cosine = find(torch.ops.aten.cos.default)
    monkeypatch.setattr(registry, "find", lambda op: cosine if op is torch.ops.aten.sin.default else find(op))
    assert check(graph).status == "wrong"
    assert check(graph).detail.startswith("n=1: v1 has error")
