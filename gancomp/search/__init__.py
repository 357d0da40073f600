"""Cost of generators and the search for the best configuration under a budget."""

from gancomp.search.budget import Budget, Limits
from gancomp.search.cost import CostModel, LayerCost, Profile, profile_module
from gancomp.search.pareto import pareto_front
from gancomp.search.search import SearchOptions, SearchResult, check_reachable, search

__all__ = [
    "Budget",
    "CostModel",
    "LayerCost",
    "Limits",
    "Profile",
    "SearchOptions",
    "SearchResult",
    "check_reachable",
    "pareto_front",
    "profile_module",
    "search",
]
