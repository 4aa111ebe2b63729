"""A sink in one string: `open_sink` makes the sink that a URL names.

The scheme is the kind of sink, and the query has its arguments, by the names of the sink's own parameters.

| module | what |
| --- | --- |
| `kinds` | the table of the schemes: what each stands for, and how its sink is made |
| `request` | a URL taken apart, and the options that a sink takes of it |
| `values` | text to numbers, sizes, spans, lists, sinks, as a parameter's annotation asks |
| `registry` | looks a scheme up, among the entry points too |
"""

from outfall.adapters.urls.registry import Described, is_url, open_sink, options_of, schemes

__all__ = ["Described", "is_url", "open_sink", "options_of", "schemes"]
