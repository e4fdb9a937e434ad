#!/usr/bin/env python3
"""Makes a trace of a radio link for `armor link up --trace`: a walk through a building, 60 s in steps of 100 ms.

Signal strength is a random walk around a mean, with deep shades that come every few seconds and last for some hundred milliseconds. Rate, loss and
delay follow from it: 40 Mbit/s, 0.1 % and 15 ms in the open, down to 1 Mbit/s, 30 % and 80 ms in a shade.

    ./make_bursty_trace.py [SEED] > bursty.trace
"""

import random
import sys

seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
draw = random.Random(seed)
print(f"# time rate loss delay; made by make_bursty_trace.py {seed}")
signal, shade = 0.8, 0
for step in range(600):
    signal = min(1.0, max(0.4, signal + draw.gauss(0.04 * (0.8 - signal), 0.04)))
    if shade == 0 and draw.random() < 0.025:
        shade = 1 + int(draw.expovariate(1 / 5))
    depth = signal
    if shade > 0:
        shade -= 1
        depth = signal * draw.uniform(0.05, 0.35)
    rate = max(1.0, 40 * depth**1.5)
    loss = min(30.0, 0.1 + 30 * max(0.0, 0.45 - depth) / 0.45)
    delay = 15 + 65 * max(0.0, 0.6 - depth) / 0.6
    print(f"{step * 100}ms {rate:.1f}mbit {loss:.1f}% {delay:.0f}ms")
