"""Commands about connection, server, scripts and messages beside a real redis-server: the errors
of what is asked for wrongly, and the shape of what is answered."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.lab.redisserver import EXECUTABLE, Redis, redis_server
from tests.lab.respclient import command, parse_all
from tests.lab.respservice import RespService

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="redis-server is not installed")

SESSION = """
    PING
    PING a
    PING a b
    ECHO
    ECHO a
    ECHO a b
    SELECT 0
    SELECT 16
    SELECT -1
    SELECT a
    SELECT 1.0
    SELECT 2147483648
    SELECT -2147483649
    SELECT 9223372036854775808
    AUTH
    AUTH a
    AUTH default a
    AUTH a b
    HELLO 5
    HELLO a
    HELLO 3 SETNAME
    HELLO 2 SETNAME "a b"
    HELLO 2 AUTH default
    HELLO 2 FOO
    CLIENT
    CLIENT GETNAME
    CLIENT SETNAME foo
    CLIENT GETNAME
    CLIENT SETNAME ""
    CLIENT GETNAME
    CLIENT SETNAME "a b"
    CLIENT NO-EVICT on
    CLIENT NO-EVICT foo
    CLIENT REPLY
    CLIENT REPLY foo
    CLIENT REPLY on
    CLIENT ID a
    CLIENT GETREDIR
    CLIENT KILL 1
    CLIENT KILL a b
    CLIENT KILL ID 0
    CLIENT KILL ID 999999
    CLIENT KILL ID 99999999999999999999
    CLIENT KILL TYPE foo
    CLIENT KILL USER foo
    CLIENT KILL USER default ADDR 1.1.1.1:1
    CLIENT KILL USER default SKIPME yes
    CLIENT KILL SKIPME
    CLIENT KILL SKIPME foo
    CLIENT KILL ADDR
    CLIENT KILL ADDR 1.2.3.4:1
    CLIENT KILL LADDR 1.2.3.4:1
    CLIENT LIST TYPE
    CLIENT LIST TYPE foo
    CLIENT LIST TYPE replica
    CLIENT LIST ID
    CLIENT LIST ID a
    CLIENT LIST FOO
    CLIENT FOO
    FOO
    FOO a "b c"
    FOO aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
"""

SERVER = """
    COMMAND FOO
    COMMAND COUNT a
    COMMAND GETKEYS
    COMMAND GETKEYS foo bar baz
    COMMAND GETKEYS get a
    COMMAND GETKEYS get a b
    COMMAND GETKEYS set a
    COMMAND GETKEYS ping a
    COMMAND GETKEYS mset a 1 b 2
    COMMAND GETKEYS rename a b
    COMMAND GETKEYS copy a b REPLACE
    COMMAND GETKEYS lcs a b LEN
    COMMAND GETKEYS del a b
    COMMAND GETKEYS watch a b
    COMMAND GETKEYS object encoding
    COMMAND GETKEYS object encoding a
    COMMAND GETKEYS object foo a
    COMMAND GETKEYS memory usage a
    COMMAND GETKEYS client id a
    COMMAND GETKEYS eval x 2 a b c
    COMMAND GETKEYS eval x 0
    COMMAND GETKEYS eval x 5 a
    COMMAND GETKEYS eval x -1 a
    COMMAND GETKEYS eval x a b
    COMMAND GETKEYS publish a b
    COMMAND GETKEYS spublish a b
    COMMAND GETKEYS ssubscribe a b
    COMMAND LIST FILTERBY
    COMMAND LIST FILTERBY FOO a
    COMMAND LIST FILTERBY MODULE a
    COMMAND LIST FILTERBY ACLCAT foo
    COMMAND LIST FILTERBY PATTERN *ping*
    COMMAND DOCS foo
    COMMAND INFO foo
    CONFIG
    CONFIG GET
    CONFIG GET foo
    CONFIG GET save
    CONFIG GET maxmemory
    CONFIG GET maxmemory-policy
    CONFIG GET slowlog-max-len
    CONFIG SET
    CONFIG SET a
    CONFIG SET foo bar
    CONFIG SET maxmemory 0
    CONFIG SET notify-keyspace-events KEA
    CONFIG GET notify-keyspace-events
    CONFIG SET notify-keyspace-events Kx
    CONFIG GET notify-keyspace-events
    CONFIG SET notify-keyspace-events q
    CONFIG SET notify-keyspace-events ""
    CONFIG RESETSTAT
    CONFIG RESETSTAT a
    CONFIG REWRITE
    CONFIG FOO
    TIME a
    ROLE a
    DBSIZE
    DBSIZE a
    WAIT
    WAIT a 1
    WAIT 0 a
    WAIT 0 0
    WAIT 0 -1
    WAIT -1 0
    WAIT 99999999999999999999 1
    WAIT 0 99999999999999999999
    SLOWLOG
    SLOWLOG GET -2
    SLOWLOG GET a
    SLOWLOG GET 0
    SLOWLOG GET 1 2
    SLOWLOG GET 99999999999999999999
    SLOWLOG LEN
    SLOWLOG RESET
    SLOWLOG FOO
    LATENCY LATEST
    LATENCY HISTORY a
    LATENCY HISTOGRAM foo
    LATENCY GRAPH a
    LATENCY GRAPH
    LATENCY RESET
    LATENCY RESET a b
    LATENCY FOO
    INFO foo
    INFO cluster
    HELP
    COMMAND HELP a
"""

KEYS = """
    SET k v
    INFO keyspace
    SET n 12
    SET big xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
    MEMORY
    MEMORY FOO
    MEMORY USAGE
    MEMORY USAGE none
    MEMORY USAGE none SAMPLES 0
    MEMORY USAGE k SAMPLES
    MEMORY USAGE k SAMPLES a
    MEMORY USAGE k SAMPLES -1
    MEMORY USAGE k SAMPLES 1 2
    MEMORY USAGE k FOO 1
    OBJECT
    OBJECT FOO k
    OBJECT ENCODING
    OBJECT ENCODING k
    OBJECT ENCODING n
    OBJECT ENCODING big
    OBJECT ENCODING none
    OBJECT FREQ k
    OBJECT FREQ none
    OBJECT IDLETIME k
    OBJECT IDLETIME none
    OBJECT REFCOUNT k
    OBJECT REFCOUNT none
    SCAN
    SCAN a
    SCAN 1.5
    SCAN " 1"
    SCAN 18446744073709551616
    SCAN 0 MATCH x*
    SCAN 0 COUNT
    SCAN 0 COUNT 0
    SCAN 0 COUNT -1
    SCAN 0 COUNT a
    SCAN 0 TYPE hash
    SCAN 0 NOVALUES
    KEYS
    KEYS x y
    KEYS nomatch
    RANDOMKEY a
    FLUSHDB FOO
    FLUSHDB a b
    FLUSHALL ASYNC
    SCAN 18446744073709551615
    SCAN 9223372036854775808
    FLUSHALL SYNC
    FLUSHDB async
    RANDOMKEY
    MULTI a
    EXEC
    DISCARD
    UNWATCH
    UNWATCH a
    WATCH
    MULTI
    MULTI
    WATCH a
    SELECT 0
    PING x
    EXEC
    MULTI
    GET
    SET k v
    EXEC
    MULTI
    DISCARD
    MULTI
    CLIENT ID foo
    EXEC
    MULTI
    CLIENT SETNAME "a b"
    TIME a
    EXEC
"""

MESSAGES = """
    SUBSCRIBE
    PSUBSCRIBE
    SSUBSCRIBE
    UNSUBSCRIBE
    PUNSUBSCRIBE
    SUNSUBSCRIBE
    PUBLISH a
    PUBLISH a b
    SPUBLISH a b
    PUBSUB
    PUBSUB FOO
    PUBSUB CHANNELS
    PUBSUB CHANNELS a b
    PUBSUB NUMSUB
    PUBSUB NUMSUB a b
    PUBSUB NUMPAT
    PUBSUB NUMPAT a
    PUBSUB SHARDCHANNELS
    PUBSUB SHARDNUMSUB a
    EVAL
    EVAL return
    EVAL return 0
    EVAL return 1
    EVAL return -1
    EVAL return x
    EVAL x 1
    EVAL x x
    EVALSHA x 0
    EVALSHA x 1
    EVALSHA ffffffffffffffffffffffffffffffffffffffff 0
    EVALSHA ffffffffffffffffffffffffffffffffffffffff 1
    EVALSHA ffffffffffffffffffffffffffffffffffffffff -1
    EVALSHA ffffffffffffffffffffffffffffffffffffffff a
    SCRIPT
    SCRIPT FOO
    SCRIPT EXISTS
    SCRIPT EXISTS a b
    SCRIPT LOAD
    SCRIPT LOAD return
    SCRIPT FLUSH
    SCRIPT FLUSH FOO
    SCRIPT FLUSH SYNC
    FUNCTION FLUSH
    FUNCTION FOO
"""

FRAMES = [
    b"*x\r\n",
    b"*-1\r\nPING\r\n",
    b"*0\r\nPING\r\n",
    b"*+1\r\n$4\r\nPING\r\n",
    b"*01\r\n$4\r\nPING\r\n",
    b"*\r\n",
    b"*2147483648\r\n",
    b"*99999999999999999999\r\n",
    b"*1\r\nPING\r\n",
    b"*1\r\n*1\r\n$4\r\nPING\r\n",
    b"*1\r\n$-1\r\n",
    b"*1\r\n$\r\n",
    b"*1\r\n$x\r\n",
    b"*1\r\n$04\r\nPING\r\n",
    b"*1\r\n$536870913\r\n",
    b"*1\r\n$99999999999999999999\r\n",
    b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\nv\r\n",
    b"*1\r\n$0\r\n\r\n",
    b"*2\r\n$0\r\n\r\n$1\r\na\r\n",
    b"*1\n$4\nPING\n",
    b"$4\r\nPING\r\n",
    b"+PING\r\n",
    b"PING\nPING\n",
    b"\r\n\r\nPING\r\n",
    b"''\r\n",
    b"ECHO 'it\\'s'\r\n",
    b'ECHO "\\"\\x41\\n"\r\n',
    b"PING 'a b' c\r\n",
    b'GET "k\r\n',
    b'GET "k"k\r\n',
    b"GET 'k\r\n",
    b"\0\0\0\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"Host: x\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\nSET a b\r\n",
]
"""What comes behind a good command, and nothing after it."""

HELPFUL = ("client", "command", "config", "function", "latency", "memory", "object", "pubsub",
           "script", "slowlog")  # fmt: skip


@pytest.fixture(scope="module", name="place")
def _place() -> Iterator[str]:
    with redis_server() as place:
        yield place


@pytest.fixture
def redis(place: str) -> Iterator[Redis]:
    with closing(Redis(place)) as redis:
        yield redis


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("lines", [SESSION, SERVER, KEYS, MESSAGES], ids=range(4))
def test_replies_are_those_of_redis(
    service: RespService, redis: Redis, lines: str, protocol: int
) -> None:
    redis.run(b"FLUSHALL")
    redis.run(b"CONFIG", b"RESETSTAT")
    with service.client() as client:
        for each in (client.ask, redis.run):
            each(b"HELLO", b"%d" % protocol, b"SETNAME", b"")
        for line in filter(None, map(str.strip, lines.splitlines())):
            words = [word.encode() for word in shlex.split(line)]
            (theirs,) = parse_all(redis.run(*words))
            client.send(command(*words))
            assert client.read() == theirs, line


def answer_to(sock: socket.socket, data: bytes) -> bytes:
    """Return all that is answered to bytes that are the last ones."""
    with closing(sock):
        sock.settimeout(20)
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        pieces = []
        while piece := sock.recv(1 << 16):
            pieces.append(piece)
        return b"".join(pieces)


@pytest.mark.parametrize("frame", FRAMES, ids=range(len(FRAMES)))
def test_bytes_are_taken_or_refused_as_by_redis(
    service: RespService, place: str, frame: bytes
) -> None:
    data = command("PING") + frame
    theirs = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    theirs.connect(place)
    assert answer_to(service.client().socket, data) == answer_to(theirs, data)


@pytest.mark.parametrize("name", HELPFUL)
def test_every_container_has_help_as_in_redis(
    service: RespService, redis: Redis, name: str
) -> None:
    """An unknown subcommand is answered by the advice to ask for it."""
    with service.client() as client:
        ours = client.ask(name, "HELP")
        (theirs,) = parse_all(redis.run(name.encode(), b"HELP"))
        assert ours[0] == theirs[0]
        shown = b"\n".join(ours[1:])
        listed = service.resp.front.commands[name.encode()].subcommands
        assert all(word.upper() in shown for word in listed if word != b"help")


def test_all_containers_have_help(service: RespService) -> None:
    commands = service.resp.front.commands
    containers = {each.name for each in commands.values() if each.subcommands}
    assert containers == set(HELPFUL)
    assert all(b"help" in commands[name.encode()].subcommands for name in containers)
