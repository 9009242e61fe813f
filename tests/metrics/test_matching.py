import logging
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from src.metrics.matching import (
    CDVAE,
    PYMATGEN,
    UNREDUCED,
    FastMatcher,
    MatcherPool,
    MatcherSettings,
    PairResult,
    match_pairs,
    open_matcher,
    rms_distance,
    summarize,
)
from src.utils.errors import UserError

ROOT = Path(__file__).parents[2]
MP_20 = ROOT.parent / "shared" / "data" / "mp_20" / "test.csv.gz"

NACL = Structure(Lattice.cubic(4.0), ["Na", "Cl"], [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
WURTZITE = Structure.from_spacegroup(
    "P6_3mc",
    Lattice.hexagonal(3.82, 6.26),
    ["Zn", "S"],
    [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.375]],
)
BLENDE = Structure.from_spacegroup(
    "F-43m", Lattice.cubic(5.42), ["Zn", "S"], [[0, 0, 0], [0.25, 0.25, 0.25]]
)


def fails_on_marked(
    prediction: Structure, target: Structure, settings: MatcherSettings
) -> float | None:
    """Mimics failures of compiled code; the target of the pair selects which."""
    match target.properties.get("fate"):
        case "hang":
            time.sleep(600)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang under pymatgen's defaults" if settings == PYMATGEN:
            time.sleep(600)
    return rms_distance(prediction, target, settings)


def report_environment(
    prediction: Structure, target: Structure, settings: MatcherSettings
) -> float | None:
    heavy = [name for name in ("torch", "lightning", "matplotlib") if name in sys.modules]
    raise RuntimeError(f"{heavy} {os.environ['OMP_NUM_THREADS']} {os.getpid()}")


def marked(fate: str) -> Structure:
    structure = NACL.copy()
    structure.properties["fate"] = fate
    return structure


@pytest.fixture(scope="module")
def crystals() -> list[Structure]:
    if not MP_20.exists():
        pytest.skip(f"real crystals are not at {MP_20}")
    texts = pd.read_csv(MP_20, nrows=30)["cif"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Issues encountered while parsing CIF", UserWarning)
        return [Structure.from_str(text, fmt="cif") for text in texts]


@pytest.fixture(scope="module")
def pool() -> Iterator[MatcherPool]:
    with MatcherPool(2, timeout=2.0, matcher=fails_on_marked) as pool:
        yield pool


@pytest.mark.parametrize("matcher", ["fast", "pymatgen"])
class TestRms:
    def test_identical(self, matcher: str) -> None:
        (result,) = match_pairs([WURTZITE], [WURTZITE], num_workers=0, matcher=matcher)
        assert result.matched
        assert result.rms == pytest.approx(0, abs=1e-6)

    def test_blind_to_order_origin_and_cell(self, matcher: str) -> None:
        prediction = Structure.from_sites(WURTZITE[::-1])
        prediction.translate_sites(range(4), [0.1, 0.2, 0.3])
        prediction.make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 2]])
        (result,) = match_pairs([WURTZITE], [prediction], num_workers=0, matcher=matcher)
        assert result.rms == pytest.approx(0, abs=1e-6)

    def test_displaced_atom(self, matcher: str) -> None:
        # One of two atoms moves by 0.4 Å. Without the mean shift each is 0.2 Å off, so the rms is
        # 0.2 Å; the free length is (4^3 / 2)^(1/3) Å.
        prediction = Structure(NACL.lattice, NACL.species, [[0.0, 0.0, 0.0], [0.6, 0.5, 0.5]])
        (result,) = match_pairs([NACL], [prediction], num_workers=0, matcher=matcher)
        assert result.rms == pytest.approx(0.2 / 32 ** (1 / 3))

    def test_displaced_atom_of_many(self, matcher: str) -> None:
        # In a cell of n atoms, one moved by d leaves a mean shift of d/n:
        # rms^2 = [(d - d/n)^2 + (n - 1) (d/n)^2] / n = d^2 (n - 1) / n^2.
        n, d = len(WURTZITE), 0.3
        prediction = WURTZITE.copy()
        prediction.translate_sites(0, [0, 0, d], frac_coords=False)
        (result,) = match_pairs([WURTZITE], [prediction], num_workers=0, matcher=matcher)
        free_length = (WURTZITE.volume / n) ** (1 / 3)
        assert result.rms == pytest.approx(d * math.sqrt(n - 1) / n / free_length)

    def test_different_structures(self, matcher: str) -> None:
        others = [BLENDE, NACL]
        results = match_pairs([WURTZITE] * 2, others, PYMATGEN, num_workers=0, matcher=matcher)
        assert results == [PairResult("unmatched")] * 2

    def test_settings_differ(self, matcher: str) -> None:
        # A cell angle that is 8 degrees off: beyond 5, within 10.
        prediction = Structure(
            Lattice.from_parameters(4, 4, 4, 98, 90, 90), NACL.species, NACL.frac_coords
        )
        loose, strict = match_pairs(
            [NACL], [prediction], [CDVAE, PYMATGEN], num_workers=0, matcher=matcher
        )
        assert loose[0].matched
        assert strict == [PairResult("unmatched")]

    def test_multiple_of_the_primitive_cell_that_does_not_reduce(self, matcher: str) -> None:
        # One of 4 atoms moves by 0.6 Å, which leaves rms^2 = d^2 (n - 1) / n^2, as above. The cell
        # then has no smaller one, unlike the target's.
        target = NACL * (2, 1, 1)
        prediction = target.copy()
        prediction.translate_sites(0, [0, 0, 0.6], frac_coords=False)
        reduced, as_they_are = match_pairs(
            [target], [prediction], [CDVAE, UNREDUCED], matcher=matcher
        )
        assert reduced == [PairResult("unmatched")]
        free_length = (target.volume / 4) ** (1 / 3)
        assert as_they_are[0].rms == pytest.approx(0.6 * math.sqrt(3) / 4 / free_length)


class TestGarbage:
    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_each_is_a_failure_with_a_reason(self, num_workers: int) -> None:
        def nacl(lattice: Lattice = NACL.lattice, x: float = 0.5) -> Structure:
            return Structure(lattice, ["Na", "Cl"], [[0.0, 0.0, 0.0], [x, 0.5, 0.5]])

        predictions = [
            None,
            nacl(x=math.nan),
            nacl(Lattice(np.full((3, 3), math.nan))),
            nacl(Lattice([[4, 0, 0], [4, 0, 0], [0, 0, 4]])),
            Structure(NACL.lattice, ["Na", "Cl"], [[0, 0, 0], [0, 0, 0]]),
            Structure(NACL.lattice, ["Na", "Na"], NACL.frac_coords),
            NACL,
        ]
        results = match_pairs(
            [NACL] * len(predictions), predictions, num_workers=num_workers, matcher="pymatgen"
        )
        statuses = [result.status for result in results]
        assert statuses == ["error"] * 4 + ["unmatched"] * 2 + ["matched"]
        assert "could not be built" in results[0].message
        assert "not finite" in results[1].message
        assert "not finite" in results[2].message
        assert "volume 0.0" in results[3].message

    def test_wild_cell_of_another_composition_is_quick(self) -> None:
        wild = Structure([[1, 0, 0], [1000, 1, 0], [0, 5000, 1]], ["Na", "Na"], NACL.frac_coords)
        start = time.monotonic()
        assert match_pairs([NACL], [wild], num_workers=0, matcher="pymatgen") == [
            PairResult("unmatched")
        ]
        assert time.monotonic() - start < 5

    def test_cell_that_stops_pymatgen(self) -> None:
        """A real case: the Niggli reduction of this cell never returns from compiled code."""
        wild = Structure([[1, 0, 0], [1000, 1, 0], [0, 5000, 1]], NACL.species, NACL.frac_coords)
        start = time.monotonic()
        results = match_pairs(
            [NACL] * 8, [NACL] * 7 + [wild], num_workers=1, timeout=1.0, matcher="pymatgen"
        )
        assert time.monotonic() - start < 30  # twice the limit, two starts, a busy machine
        assert [result.status for result in results] == ["matched"] * 7 + ["timeout"]


class TestPool:
    @pytest.mark.parametrize("num_workers", [pytest.param(1, marks=pytest.mark.slow), 2])
    def test_same_results_for_any_number_of_workers(
        self, crystals: list[Structure], num_workers: int
    ) -> None:
        rng = np.random.default_rng(0)
        predictions: list[Structure | None] = []
        for index, crystal in enumerate(crystals):
            noise = rng.normal(scale=0.01 * (index % 12), size=(len(crystal), 3))
            coords = crystal.frac_coords + noise
            predictions.append(Structure(crystal.lattice, crystal.species, coords))
        predictions[7] = None
        settings = [CDVAE, PYMATGEN]
        serial = match_pairs(crystals, predictions, settings, num_workers=0, matcher="pymatgen")
        parallel = match_pairs(
            crystals, predictions, settings, num_workers=num_workers, matcher="pymatgen"
        )
        assert parallel == serial  # to the last bit
        statuses = {result.status for results in serial for result in results}
        assert statuses == {"matched", "unmatched", "error"}
        assert serial[0] == match_pairs(
            crystals, predictions, CDVAE, num_workers=0, matcher="pymatgen"
        )

    @pytest.mark.slow
    def test_hang_is_charged_to_its_pair(
        self, pool: MatcherPool, caplog: pytest.LogCaptureFixture
    ) -> None:
        targets = [NACL] * 40
        targets[17] = marked("hang")
        with caplog.at_level(logging.WARNING):
            results = pool.match(targets, [NACL] * 40)
        assert results[17] == PairResult("timeout", message="no result within 2 s")
        assert [r.matched for r in results] == [index != 17 for index in range(40)]
        assert "pair 17 (NaCl): timeout" in caplog.text

    def test_hang_is_charged_to_its_settings(self, pool: MatcherPool) -> None:
        targets = [NACL, marked("hang under pymatgen's defaults"), NACL]
        loose, strict = pool.match(targets, [NACL] * 3, [CDVAE, PYMATGEN])
        assert [result.status for result in loose] == ["matched"] * 3
        assert [result.status for result in strict] == ["matched", "timeout", "matched"]

    def test_death_is_charged_to_its_pair(self, pool: MatcherPool) -> None:
        targets = [NACL] * 40
        targets[3] = targets[30] = marked("die")
        results = pool.match(targets, [NACL] * 40)
        assert [r.status for r in results if not r.matched] == ["crashed"] * 2
        assert results[3].message == results[30].message == "worker died with exit code -9"

    def test_pool_outlives_an_idle_worker(self, pool: MatcherPool) -> None:
        assert pool.match([NACL], [NACL])[0].matched
        for worker in workers():
            worker.kill()
        time.sleep(0.5)
        assert [r.matched for r in pool.match([NACL] * 9, [NACL] * 9)] == [True] * 9

    def test_workers_are_reused_light_and_single_threaded(self) -> None:
        with MatcherPool(1, matcher=report_environment) as pool:
            messages = [pool.match([NACL], [NACL])[0].message for _ in range(2)]
        assert messages[0] == messages[1]
        assert messages[0].startswith("RuntimeError: [] 1 ")

    @pytest.mark.slow
    def test_nothing_is_left_behind_after_an_interrupt(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = set(workers())
        with MatcherPool(2, timeout=60.0, matcher=fails_on_marked) as own:

            def interrupt(*_: object) -> None:
                raise KeyboardInterrupt

            previous = signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, 3.0)
            try:
                with pytest.raises(KeyboardInterrupt):
                    own.match([NACL] * 40 + [marked("hang")] * 4, [NACL] * 44)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
                signal.signal(signal.SIGALRM, previous)
            assert set(workers()) == before
            assert own.match([NACL], [NACL])[0].matched  # and it works again
        assert set(workers()) == before

    def test_main_script_is_not_run_again(self, tmp_path: Path) -> None:
        script = tmp_path / "script.py"
        script.write_text(
            "from pymatgen.core import Lattice, Structure\n"
            "from src.metrics.matching import match_pairs\n"
            "print('hello')\n"
            "cell = Structure(Lattice.cubic(3.0), ['Fe'], [[0, 0, 0]])\n"
            "print(match_pairs([cell], [cell], num_workers=1, matcher='pymatgen')[0].status)\n"
        )
        run = subprocess.run(
            [sys.executable, script],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert run.stdout.split() == ["hello", "matched"]

    def test_empty_input_starts_no_worker(self) -> None:
        with MatcherPool(2) as own:
            before = set(workers())
            assert own.match([], []) == []
            assert own.match([], [], [CDVAE, PYMATGEN]) == [[], []]
            assert set(workers()) == before

    def test_bad_arguments(self) -> None:
        with pytest.raises(ValueError, match="2 targets but 1 predictions"):
            MatcherPool(0).match([NACL, NACL], [NACL])
        with pytest.raises(ValueError, match="num_workers"):
            MatcherPool(-1)
        with pytest.raises(ValueError, match="timeout"):
            MatcherPool(1, timeout=0)


def workers() -> list[multiprocessing.process.BaseProcess]:
    return [p for p in multiprocessing.active_children() if p.name.startswith("pebble")]


class TestSummarize:
    def test_by_hand(self) -> None:
        results = [
            PairResult("matched", 0.1),
            PairResult("matched", 0.3),
            PairResult("unmatched"),
            PairResult("timeout", message="no result"),
            PairResult("crashed", message="died"),
            PairResult("error", message="NaN"),
            PairResult("error", message="NaN"),
            PairResult("unmatched"),
        ]
        summary = summarize(results, CDVAE)
        assert summary.match_rate == 0.25
        assert summary.rmse == pytest.approx(0.2)
        assert summary.crmse == pytest.approx((0.1 + 0.3 + 6 * 0.5) / 8)
        assert summary.num_pairs == 8
        assert (summary.num_timeouts, summary.num_crashed, summary.num_errors) == (1, 1, 2)
        assert summarize(results, PYMATGEN).crmse == pytest.approx((0.4 + 6 * 0.3) / 8)

    def test_nothing_matched(self) -> None:
        summary = summarize([PairResult("unmatched")], CDVAE)
        assert (summary.match_rate, summary.crmse) == (0.0, 0.5)
        assert math.isnan(summary.rmse)

    def test_no_pairs(self) -> None:
        summary = summarize([], CDVAE)
        assert summary.num_pairs == 0
        assert math.isnan(summary.match_rate)
        assert math.isnan(summary.rmse)
        assert math.isnan(summary.crmse)


class TestFastMatcher:
    def test_pymatgen_gives_the_same_results(self, crystals):
        noise = np.random.default_rng(0)
        predictions = [
            Structure(
                s.lattice, s.species, s.frac_coords + 0.03 * noise.standard_normal((len(s), 3))
            )
            for s in crystals[:12]
        ]
        predictions[4] = None
        settings = [CDVAE, UNREDUCED]
        with MatcherPool(0) as pool, FastMatcher() as fast:
            expected = pool.match(crystals[:12], predictions, settings)
            found = fast.match(crystals[:12], predictions, settings)
        for ours, theirs in zip(found, expected, strict=True):
            assert [r.status for r in ours] == [r.status for r in theirs]
            assert [r.rms for r in ours] == [pytest.approx(r.rms, abs=1e-6) for r in theirs]

    def test_a_pair_over_the_limit_is_named_at_once(self, caplog):
        large = BLENDE * (3, 3, 3)
        with caplog.at_level(logging.WARNING):
            results = FastMatcher(timeout=0.1).match([NACL, large], [NACL, large], UNREDUCED)
        assert [result.status for result in results] == ["matched", "timeout"]
        assert "pair 1 (S1 Zn1): timeout, needs work of" in caplog.text

    def test_chosen_pairs(self):
        targets, predictions = [WURTZITE, BLENDE], [BLENDE, None, WURTZITE]
        pairs = [(0, 1), (0, 0), (2, 0), (1, 1)]
        for matcher in (FastMatcher(), MatcherPool(0)):
            results = matcher.match(targets, predictions, PYMATGEN, pairs=pairs)
            assert [r.status for r in results] == ["matched", "unmatched", "matched", "error"]

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="1 predictions but 2 targets"):
            FastMatcher().match([NACL, NACL], [NACL])
        with pytest.raises(UserError, match="num_workers must be at least 0"):
            open_matcher("fast", -1)
        with pytest.raises(UserError, match="timeout must be a positive number"):
            open_matcher("fast", timeout=0)
        with pytest.raises(UserError, match="matcher must be fast or pymatgen, not ours"):
            open_matcher("ours")

    def test_by_name(self):
        assert open_matcher().name == "fast"
        with open_matcher("pymatgen", 3, 7.0) as pool:
            assert (pool.name, pool.num_workers, pool.timeout) == ("pymatgen", 3, 7.0)
