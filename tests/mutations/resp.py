"""Faults of the front that speaks RESP."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

__all__ = ["MUTATIONS"]

MUTATIONS = [
    Mutation(
        "resp: a map of RESP2 is counted by pairs",
        "conure/resp/replies.py",
        "            self.array_of(2 * count)",
        "            self.array_of(count)",
        ("tests/resp/test_replies.py",),
    ),
    Mutation(
        "resp: an error may have two lines",
        "conure/resp/replies.py",
        '        line = text.replace("\\r", " ").replace("\\n", " ")',
        "        line = text",
        ("tests/resp/test_replies.py",),
    ),
    Mutation(
        "resp: the last byte of a range is left out",
        "conure/steps.py",
        "    stop = min(last + 1, size)",
        "    stop = min(last, size)",
        ("tests/resp/test_steps.py",),
    ),
    Mutation(
        "resp: a line end within a word ends it",
        "conure/resp/grammar.py",
        "        if lines[first + 1 : end : 2] != [_SIZES[len(word)] for word in words]:",
        "        if False:",
        ("tests/resp/test_grammar.py",),
    ),
    Mutation(
        "resp: words cost nothing but their bytes",
        "conure/resp/grammar.py",
        "        self.held += size + WORD_PRICE",
        "        self.held += size",
        ("tests/resp/test_grammar.py",),
    ),
    Mutation(
        "resp: numbers may have leading zeros",
        "conure/resp/numbers.py",
        ' or (digits[:1] == b"0" and word != b"0")',
        "",
        ("tests/resp/test_grammar.py",),
    ),
    Mutation(
        "resp: reads overtake writes",
        "conure/resp/connection.py",
        "            lane is not self.lane\n            or",
        "            False\n            or",
        ("tests/resp/test_connection.py",),
    ),
    Mutation(
        "resp: a connection has the time of all",
        "conure/resp/connection.py",
        "if self.state == READING and perf_counter() > reactor.leave:",
        "if False:",
        ("tests/resp/test_connection.py",),
    ),
    Mutation(
        "resp: what waits is taken up twice a round",
        "conure/resp/connection.py",
        "            if not self.is_resumed:  # or",
        "            if True:  # or",
        ("tests/resp/test_connection.py",),
    ),
    Mutation(
        "resp: replies of all kinds leave at once",
        "conure/resp/connection.py",
        "        if self.waiting:\n            self.waiting[-1].tail.append(data)\n        elif",
        "        if",
        ("tests/resp/test_connection.py",),
    ),
    Mutation(
        "resp: a reader that reads nothing is served on",
        "conure/resp/connection.py",
        "return self.pending > _OUTPUT_HIGH or",
        "return",
        ("tests/resp/test_connection.py",),
    ),
    Mutation(
        "resp: pages of the web are heard",
        "conure/resp/frontend.py",
        "if command is None and words[0].lower() in _FOREIGN:",
        "if command is None and words[0] in ():",
        ("tests/resp/test_connection.py",),
    ),
    Mutation(
        "resp: an unknown outcome is an error like any other",
        "conure/resp/failures.py",
        '            return f"UNKNOWN the',
        '            return f"ERR the',
        ("tests/resp/test_connection.py",),
    ),
    Mutation(
        "resp: values of a run are as long as they like",
        "conure/resp/strings.py",
        "                and max(map(len, values)) <= self._longest\n",
        "",
        ("tests/resp/test_connection.py",),
    ),
    Mutation(
        "resp: a run is answered as one",
        "conure/resp/waiters.py",
        "        self.missing -= count\n        if not",
        "        self.missing -= 1\n        if not",
        ("tests/resp/test_connection.py",),
    ),
    Mutation(
        "resp: names in capitals are unknown",
        "conure/resp/front.py",
        "        for name in (command.name, command.name.upper()):",
        "        for name in (command.name.upper(),):",
        ("tests/resp/test_connection.py",),
    ),
    Mutation(
        "resp: the slow log grows",
        "conure/resp/slowlog.py",
        "deque(maxlen=_MOST)",
        "deque()",
        ("tests/resp/test_connecting.py",),
    ),
    Mutation(
        "resp: so many words at least are so many",
        "conure/resp/table.py",
        "(self.arity < 0 and count >= -self.arity)",
        "(self.arity < 0 and count > -self.arity)",
        ("tests/resp/test_connecting.py",),
    ),
    Mutation(
        "resp: who has gone is listed",
        "conure/resp/clients.py",
        "        self._clients.pop(client.id, None)",
        "        pass",
        ("tests/resp/test_connecting.py",),
    ),
    Mutation(
        "resp: a killed client lives",
        "conure/resp/connecting.py",
        "                each.reactor.guard(each.close, each)",
        "                pass",
        ("tests/resp/test_connecting.py",),
    ),
    Mutation(
        "resp: skipped replies are sent",
        "conure/resp/session.py",
        "return self.silent or self.skips == 1",
        "return self.silent",
        ("tests/resp/test_connecting.py",),
    ),
    Mutation(
        "resp: a bug in one answer leaves it without",
        "conure/resp/answers.py",
        "        while pending.missing:\n            pending.fail(INTERNAL)",
        "        pass",
        ("tests/resp/test_connection.py",),
    ),
]
