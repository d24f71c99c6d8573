"""Figure 9: Figure 8 with the embedding fixed, from modular_addition.py.

As the paper's text and the official code have it; with the word `trainable_unembedding=false`, as
the figure's caption has it, the unembedding is fixed as well.
"""

from lab.reports import Request
from lab.reports._by_jr import draw_by_jr


def report(request: Request) -> None:
    """Draws weight decay alone and GrokAlign; raises UserError if there is no finished run."""
    said = any(word.startswith("trainable_unembedding=") for word in request.words)
    fixed = ("fixed_embedding=true", *["trainable_unembedding=true"] * (not said))
    draw_by_jr(request._replace(words=(*fixed, *request.words)), "figure_9", "modular_addition")
