"""`tersor run`."""

from __future__ import annotations

from typing import Annotated

import typer

from tersor.cli.commands.options import AsJson
from tersor.cli.render import err, out, print_json, size

EPILOG = """
**Examples**

`tersor run ./Llama-3.1-8B-tersor "The capital of France is"`

`tersor run ./SmolLM2-tersor "Why is the sky blue?" --chat --temperature 0.7 -n 200`
"""


def command(
    model: Annotated[str, typer.Argument(help="A model directory or Hub id, compressed or not.")],
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", min=1, help="Stop after so many tokens.")
    ] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed for sampling.")] = 0,
    chat: Annotated[
        bool, typer.Option(help="Give the prompt as a user's turn, by the model's chat template.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    layout: Annotated[
        str, typer.Option(help="Of the weights in GPU memory: auto, compact or fast.")
    ] = "auto",
    exact: Annotated[bool, typer.Option(help="On a GPU too, compute the plain model's bits.")] = False,
    as_json: AsJson = False,
) -> None:
    """Generate text from a model, compressed or not, and tell how fast it was.

    The weights stay compressed in memory; a layer's are decoded when it runs. Tokens are those of the original model.
    """
    from tersor.pipeline.generate import Generator

    generator = Generator(model, device, layout, exact)
    show = None if as_json else lambda text: out.print(text, end="", markup=False)
    result = generator.generate(
        prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, chat=chat, on_text=show
    )
    if as_json:
        print_json(result)
        return
    out.print()
    err.print(
        f"[dim]{len(result.tokens)} tokens, {result.tokens_per_second:.1f} tokens/s on {result.device}; "
        f"{size(result.weight_bytes)} of weights[/]"
    )
