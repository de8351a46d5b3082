"""Ask a small model about a drawn scene, with all of its visual tokens and with a quarter of them.

Usage: python examples/quickstart.py
"""

import foveate
from foveate.data import Prompt, encode
from foveate.testbed import load_shipped, scenes

model, processor = load_shipped()  # any supported transformers model and its processor will do
scene = scenes()[0]
inputs = encode(model, processor, [Prompt([scene.image], "How many red things are there?")])
length = inputs["input_ids"].shape[1]


def answer() -> str:
    output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return processor.batch_decode(output[:, length:], skip_special_tokens=True)[0]


print("all tokens:", answer())
with foveate.prune(model, "idpruner", keep=0.25) as pruning:
    print("a quarter: ", answer())
    print(pruning.report())

# One method before the LLM and another inside it; both ratios are of the unpruned image.
with foveate.prune(model, ["divprune", "fastv"], keep=[0.5, 0.1]) as pruning:
    print("two stages:", answer())
    print(pruning.report())

# Without hooks, for loops of one's own.
short = foveate.prune_inputs(model, inputs, "divprune", keep=0.25)
output = model.generate(**short, max_new_tokens=4, do_sample=False)
print("own loop:  ", processor.batch_decode(output, skip_special_tokens=True)[0])
