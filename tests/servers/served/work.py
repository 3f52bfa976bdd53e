"""What every server of these tests serves. Each function puts its version into the answer; the patch has them all.

They pause, so that most of the time some request is in the middle of them.
"""

import time

PAUSE = 0.001


def edge():
    return "old"


def tax():
    time.sleep(PAUSE)
    return ["old"]


def price():
    found = ["old", *tax()]
    time.sleep(PAUSE)
    return found


def lines():
    yield from price()
    time.sleep(PAUSE)
    yield from tax()


def answer():
    return ["old", *lines()]


async def tax_later(sleep):
    await sleep(PAUSE)
    return ["old"]


async def lines_later(sleep):
    for found in await tax_later(sleep):
        yield found
    await sleep(PAUSE)
    yield tax()[0]


async def answer_later(sleep):
    return ["old", *[found async for found in lines_later(sleep)], *await tax_later(sleep)]
