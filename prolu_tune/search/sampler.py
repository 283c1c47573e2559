"""An Optuna sampler that fills a range of L0, for every architecture, with as few trainings as it can."""

import itertools
import math
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import intersection_search_space  # noqa: F401
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from prolu_tune.search.coverage import CoverageTarget, coverage_of
from prolu_tune.search.landscape import Landscape
from prolu_tune.search.planner import Proposal, propose
from prolu_tune.search.records import WAIVED_KEY, Group, PendingTrial, TrialRecord, record_of
from prolu_tune.search.stopping import Decision

DEFAULT_WINDOW = 8
