"""How many trials machines hold, those that are there and those an autoscaler may start."""

from typing import Any

import pytest

from prolu_tune.errors import InputError
from prolu_tune.search.space import Resources
from prolu_tune.sweep import ray_setup
from prolu_tune.sweep.ray_setup import Node, check_resources, most_trials, trials_on
from prolu_tune.sweep.settings import NodeType

HEAD = Node("1", "head", cpus=0, gpus=0)
WORKER = Node("2", "worker", cpus=8, gpus=1)


@pytest.mark.parametrize(("share", "fit"), [(0.1, 10), (0.25, 4), (0.3, 3), (1, 1), (0, 8)])
def test_a_share_of_a_gpu_fits_as_often_as_one_would_count(share: float, fit: int) -> None:
    assert trials_on(Node("1", "n", cpus=16 if share else 8, gpus=1), Resources(gpus_per_trial=share)) == fit


def test_a_head_without_cpus_holds_none() -> None:
    assert most_trials(Resources(), [HEAD, WORKER]) == 8


def test_machines_to_come_count_and_the_users_limit_stands() -> None:
    kinds = [NodeType("gpu", cpus=8, gpus=1, most=10)]
    assert most_trials(Resources(gpus_per_trial=0.25), [HEAD], kinds) == 40
    assert check_resources(Resources(gpus_per_trial=0.25), [HEAD], kinds) == 40
    assert most_trials(Resources(gpus_per_trial=0.25, max_concurrent_trials=6), [HEAD], kinds) == 6


def test_what_no_machine_will_ever_hold_is_refused() -> None:
    with pytest.raises(InputError, match=r"gpus_per_trial is 2, but the best machine here has 1 GPUs"):
        check_resources(Resources(gpus_per_trial=2), [HEAD], [NodeType("gpu", cpus=8, gpus=1, most=10)])
    with pytest.raises(InputError, match=r"cpus_per_trial is 16, but the largest machine has 8 CPUs"):
        check_resources(Resources(cpus_per_trial=16), [HEAD, WORKER])


def test_tune_hands_no_aws_key_to_processes_as_an_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.tune.execution import class_cache

    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", set(class_cache.ENV_VARS_TO_PROPAGATE))
    handed: list[dict[str, str]] = []

    def remote(*, runtime_env: dict[str, dict[str, str]]) -> Any:
        handed.append(runtime_env["env_vars"])
        return lambda trainable: trainable

    monkeypatch.setattr(ray, "remote", remote)
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(key, "canary")
    class_cache._ActorClassCache().get(int)
    ray_setup.keep_secrets()
    class_cache._ActorClassCache().get(int)
    assert [sum(value == "canary" for value in env.values()) for env in handed] == [3, 0]
