"""What of a prompt is learned: the answer as the model's own chat template writes it, and its end."""

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import tiny_models as zoo_module
from foveate.data.prompts import Prompt
from foveate.data.samples import Sample
from foveate.errors import ModelError
from foveate.testbed import load_shipped, scenes
from foveate.training import Example, TrainingError, example_of
from foveate.training.scorer.data import answer_ids, batch_of

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<image>{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VICUNA = (
    "{% for message in messages %}{{ message['role'].upper() }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }} {% else %}<image>\n{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")


class Letters:
    """A processor whose tokenizer spells: a token is a byte, or one of the special words."""

    def __init__(self, template: str | None, end: str | None) -> None:
        specials = ["<pad>", "</s>", "<|im_start|>", "<|im_end|>", "<image>", "<think>"]
        alphabet = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
        tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(alphabet)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.post_processor = processors.TemplateProcessing("<pad> $A", special_tokens=[("<pad>", 0)])
        tokenizer.add_special_tokens(specials)
        self.tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token=end)
        self.chat_template = template

    def spelt(self, answer: str, pictures: int = 1, video: bool = False) -> list[str]:
        prompt = Prompt([zoo_module.picture()] * pictures, "why?", video)
        return self.tokenizer.convert_ids_to_tokens(answer_ids(self, prompt, answer).tolist())


@pytest.mark.parametrize(
    ("template", "end", "wanted"),
    [
        (CHATML, "<|im_end|>", [*"no", "<|im_end|>"]),  # the template ends the turn
        (VICUNA, "</s>", ["Ġ", *"no", "</s>"]),  # the template writes a space, and no end
        (THINKING, "<|im_end|>", [*"no", "<|im_end|>"]),  # the answer is not behind the prompt
        (None, "</s>", [*"no", "</s>"]),
    ],
)
@pytest.mark.parametrize("video", [False, True])
def test_answers_are_written_as_the_template_writes_them(template, end, wanted, video) -> None:
    assert Letters(template, end).spelt("no", 2, video) == wanted


def test_answers_that_cannot_be_learned() -> None:
    with pytest.raises(TrainingError, match="no end token"):
        Letters(CHATML, None).spelt("no")
    with pytest.raises(TrainingError, match="makes nothing of the answer ''"):
        Letters(None, "</s>").spelt("")


def test_a_shipped_model_is_asked_and_answers_in_its_own_words() -> None:
    _, processor = load_shipped()
    example = example_of(processor, Sample("0", "Which object is red?", ("star", "asterisk"), (scenes()[0].image,)))
    text = processor.tokenizer.convert_ids_to_tokens(example.inputs["input_ids"][0, [0, 1, -3, -2, -1]].tolist())
    assert text == ["<bos>", "<image>", "is", "red", "?"]
    assert processor.tokenizer.convert_ids_to_tokens(example.answer.tolist()) == ["star", "<eos>"]


def test_batches_are_prompts_and_answers_padded_on_the_left() -> None:
    def example(ids, answer, pixels=1):
        row = torch.tensor([ids])
        extra = {"attention_mask": torch.ones_like(row), "mm_token_type_ids": (row == 9).long()}
        return Example({"input_ids": row, **extra, "pixels": torch.ones(1, pixels)}, torch.tensor(answer))

    inputs, labels = batch_of([example([9, 4], [5, 2]), example([9, 9, 4, 4], [6, 7, 2])], padding=3)
    assert inputs["input_ids"].tolist() == [[3, 3, 3, 9, 4, 5, 2], [9, 9, 4, 4, 6, 7, 2]]
    assert inputs["attention_mask"].tolist() == [[0, 0, 0, 1, 1, 1, 1], [1] * 7]
    assert inputs["mm_token_type_ids"].tolist() == [[0, 0, 0, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0]]
    assert inputs["pixels"].shape == (2, 1)
    assert labels.tolist() == [[-100, 5, 2], [6, 7, 2]]
    with pytest.raises(ModelError, match="pixels of shapes"):
        batch_of([example([9], [2]), example([9], [2], pixels=3)], padding=0)
