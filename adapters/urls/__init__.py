"""Sinks by URL: `open_sink` opens the sink that a URL names.

The scheme names the kind of sink. The query has its arguments, under the names of the sink's parameters.

| module | what |
| --- | --- |
| `kinds` | the table of schemes: the kind of sink that each names, and how to make it |
| `request` | parses a URL, and gives each sink its options |
| `values` | converts text to numbers, sizes, spans, lists and sinks, by the parameter's annotation |
| `registry` | looks a scheme up, in the table and among entry points |
"""

from outfall.adapters.urls.registry import Described, is_url, misspelt, open_sink, options_of, schemes

__all__ = ["Described", "is_url", "misspelt", "open_sink", "options_of", "schemes"]
