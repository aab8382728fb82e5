"""Relay tokens against tensors of the authors' code: blocks, stages and the encoders of whole segmenters.

Weights reach the modules through the product's conversion table. Every stored output of these cases is compared,
under both update rules.
"""

import re

import pytest
import torch
from cases import each
from golden_cases import GoldenCase, golden_cases
from torch import Tensor, nn
