"""A process that uses an answer store as a worker does: looks a question up, or makes an answer up and keeps it.

    python answer_writer.py STORE SEED QUESTIONS

Begins when its standard input ends. For every answer that it may use it prints one line, number and answer. The made-up
answers of two processes differ; two of the same seed ask in the same order.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from pipeline.engines.protocol import Answer, Message, Model, Request
from pipeline.teach.answer_line import Question, question
from pipeline.teach.answers import AnswerStore


def asked(number: int) -> Question:
    """The question of that number, for all processes the same."""
    return question(Model("model", "1"), Request((Message("user", f"Question {number}: " + "why? " * (number % 50)),)))


async def main(location: str, seed: int, count: int) -> None:
    """Work through all questions in an order of one's own, some at a time."""
    store = AnswerStore(location)
    Path(f"{location}-ready-{os.getpid()}").touch()
    sys.stdin.read()
    numbers = list(range(count))
    random.Random(seed).shuffle(numbers)
    room = asyncio.Semaphore(16)

    async def use(number: int) -> None:
        async with room:
            answer = await store.find(asked(number))
            if answer is None:
                await asyncio.sleep(0.001)  # an engine takes its time
                answer = await store.keep(asked(number), Answer(f"{os.getpid()}.{seed} " * (number % 30 + 1), "stop"))
            os.write(1, f"{number}\t{answer.text}\n".encode())

    await asyncio.gather(*(use(number) for number in numbers))
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
