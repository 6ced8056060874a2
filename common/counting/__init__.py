"""How many parameters, bytes and FLOPs a method takes on a model, from shapes alone (`mosgoat params`)."""

from common.counting.count import Count, LayerGroup, count
from common.counting.flops import Flops
from common.counting.models import MODELS, Architecture, find_model

__all__ = ["MODELS", "Architecture", "Count", "Flops", "LayerGroup", "count", "find_model"]
