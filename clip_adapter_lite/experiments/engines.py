"""Where runs are carried out: in processes of this machine (joblib), or on Ray for studies that
outgrow it.

An engine takes runs (callables without arguments, with a `bank`, and what is `alike` to be carried
out `together` on a GPU) and yields what each returns, as they finish.
"""
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..devices import best_device

ENGINES = ("joblib", "ray")
STACK = 128  # runs that are carried out together: what a kill can cost
GPU_SHARE = 0.125  # of a GPU for a run on a cluster that has some: a fit leaves most of a card idle


def check_engine(engine: str, jobs: int, address: str | None) -> None:
    """Raise ValueError or ModuleNotFoundError, before any work, if runs could not be carried out
    that way.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}; got {engine!r}.")
    if jobs == 0 or jobs < -1:
        raise ValueError("jobs must be a number of processes from 1, or -1 for one a core; got "
                         f"{jobs}.")
    if address and engine != "ray":
        raise ValueError("An address is that of a Ray cluster; give engine='ray' (--engine ray) "
                         "with it.")
    if engine == "ray":
        try:
            import ray  # noqa: F401
        except ImportError:
            raise ModuleNotFoundError("The engine 'ray' needs Ray, which is not installed; pip install "
                                      "'clip-adapter-lite[ray]', or use engine='joblib'.") from None


def finished(runs: Sequence, *, jobs: int = 1, engine: str = "joblib",
             address: str | None = None) -> Iterator:
    """What `run()` returns for every run, in the order of finishing. One thread a run: many small
    ones wait for none.

    jobs: processes, -1 for one a core (of the cluster, if there is an address), or for none but this
    one where a run computes on this machine's GPU: each process would pay for CUDA's start again, and
    they would wait for the one card. There runs that can be carried out `together` are.
    """
    if engine == "ray":
        return _on_ray(runs, jobs, address)
    on_gpu = any(best_device(run.method.device).type == "cuda" for run in runs)
    return _here(runs) if on_gpu and jobs in (-1, 1) else _on_joblib(runs, jobs)


def _here(runs: Sequence) -> Iterator:
    """In this process, runs that are alike together."""
    alike: dict = {}
    for run in runs:
        alike.setdefault(run.alike, []).append(run)
    for group in alike.values():
        for first in range(0, len(group), STACK):
            part = group[first:first + STACK]
            yield from type(part[0]).together(part)


def _on_joblib(runs: Sequence, jobs: int) -> Iterator:
    from joblib import Parallel, delayed
    with warnings.catch_warnings():
        # loky renews workers that loaded a backbone
        warnings.filterwarnings("ignore", "A worker stopped", UserWarning)
        work = Parallel(n_jobs=jobs, return_as="generator_unordered", pre_dispatch="2*n_jobs")
        yield from work(delayed(run)() for run in runs)


def _on_ray(runs: Sequence, jobs: int, address: str | None) -> Iterator:
    """Banks go to Ray's object store once; a few runs a core are under way at a time, so that a
    kill loses little.
    """
    import ray
    # a study on somebody's pictures reports to nobody
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ours = not ray.is_initialized()
    if ours:
        ray.init(address=address, num_cpus=jobs if jobs > 0 and not address else None,
                 include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        banks = {id(run.bank): ray.put(run.bank)
                 for run in {id(run.bank): run for run in runs}.values()}
        there = ray.cluster_resources()
        gpus = there.get("GPU", 0)  # Ray hides them from tasks that ask for none
        share = ray.remote(num_gpus=GPU_SHARE if gpus else 0)
        task = share(lambda run, bank: replace(run, bank=bank)())
        room = 2 * (jobs if jobs > 0 else max(1, int(gpus / GPU_SHARE or there.get("CPU", 1))))
        waiting, under_way = iter(runs), []
        while True:
            for run in waiting:
                under_way.append(task.remote(replace(run, bank=None), banks[id(run.bank)]))
                if len(under_way) >= room:
                    break
            if not under_way:
                return
            done, under_way = ray.wait(under_way)
            yield ray.get(done[0])
    finally:
        if ours:
            ray.shutdown()
