"""Random graphs: 2,000 here, more with ``--sweep``; a failure shows the smallest graph and the seed."""

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

EXAMPLES, SWEPT, TOGETHER = 2000, 10_000, 50
"""How many graphs there are without and with ``--sweep``, if ``--fuzz-examples`` does not say; how many a test has."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seeds" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    first, examples = option("fuzz_seed"), option("fuzz_examples") or (SWEPT if option("sweep") else EXAMPLES)
    seeds = range(first, first + examples)
    parts = [seeds[start : start + TOGETHER] for start in range(0, examples, TOGETHER)]
    metafunc.parametrize("seeds", parts, ids=[f"{part[0]}-{part[-1]}" for part in parts])


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def fuzz(run: Callable[[Graph], Outcome], seeds: range) -> Counter[str]:
    """Check one graph for each seed, and count what became of them."""
    counts = Counter(fuzz_one(run, seed) for seed in seeds)
    print(f"seeds {seeds[0]} to {seeds[-1]}: {dict(counts)}")
    return counts


def fuzz_one(run: Callable[[Graph], Outcome], seed: int) -> str:
    """Check the graph of one seed, and where it fails find the smallest like it."""
    outcomes = []

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
        outcome = run(graph)
        outcomes.append(outcome)
        hypothesis.note(f"again with: --fuzz-seed={seed} --fuzz-examples=1")
        assert outcome.status in ("right", "refused"), f"{outcome.status}: {outcome.detail}"

    check_one()
    return outcomes[-1].status


@pytest.mark.timeout(0)  # the worker sees to graphs that hang, and finding the smallest takes its time
def test_random_graphs(worker: Worker, seeds: range) -> None:
    counts = fuzz(worker.check, seeds)
    assert len(seeds) < TOGETHER or counts["right"] > 3 * counts["refused"]


# The fuzzer itself ----------------------------------------------------------------------------------------------------


def test_a_failure_shows_the_smallest_graph_and_the_seed() -> None:
    def wrong(graph: Graph) -> Outcome:
        return Outcome("wrong", "why") if "softmax" in graph.source else Outcome("right")

    with pytest.raises(AssertionError, match="wrong: why") as caught:
        fuzz(wrong, range(3, 203))
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
