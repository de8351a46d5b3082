"""A transformers ``pipeline`` over a pruned model is pruned."""

from __future__ import annotations

from typing import Any

import torch
from transformers import pipeline

import foveate
from foveate.data import encode
from foveate.data.prompts import Prompt
from foveate.testbed import load_shipped, scenes


def test_image_text_to_text_answers_as_generate_does() -> None:
    model, processor = load_shipped()
    ask: Any = pipeline("image-text-to-text", model=model, processor=processor)
    scene = scenes()[0]
    question = scene.questions[0].text
    messages = [
        {"role": "user", "content": [{"type": "image", "image": scene.image}, {"type": "text", "text": question}]}
    ]
    inputs = encode(model, processor, [Prompt([scene.image], question)])
    for keep, kept in ((0.1, 20), (0.01, 2), (1.0, 196)):
        with foveate.prune(model, "divprune", keep=keep) as pruning:
            said = ask(text=messages, max_new_tokens=8, return_full_text=False)[0]["generated_text"]
            report = pruning.report()
            output = model.generate(**inputs, max_new_tokens=8)
            again = pruning.report()
        answer = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        assert said.strip() == answer
        assert report.tokens == again.tokens == kept and report.prompt_tokens == again.prompt_tokens
        assert torch.equal(report.images[0].kept, again.images[0].kept)
