"""What two sockets see of each other, one line a behaviour. The oracle is the same script between two processes of the host.

    serve ADDRESS TCP UDP        answers; prints "ready"
    talk ADDRESS TCP UDP CLOSED [NAME...]  prints what the calling side sees, and what the other side has seen, but for these
"""
import errno, hashlib, select, socket, struct, sys, threading, time

LIMIT = 30
BIG = bytes(range(251)) * 12_000
seen = {}


def outcome(call):
    """What a call gives, or the name of its error."""
    try:
        return call()
    except socket.timeout:
        return "timeout"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


def rest(stream):
    """Everything up to the end, as its length and the end's kind."""
    digest, length = hashlib.sha256(), 0
    while True:
        part = outcome(lambda: stream.recv(1 << 16))
        if not isinstance(part, bytes) or not part:
            return f"{length} {digest.hexdigest()[:12]} {part or 'end'}"
        digest.update(part)
        length += len(part)


def reset(stream):
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()


def line(stream):
    text = b""
    while not text.endswith(b"\n"):
        part = stream.recv(1)
        if not part:
            break
        text += part
    return text.decode().strip()


def serve_stream(stream):
    stream.settimeout(LIMIT)
    name = line(stream)
    if name.startswith("seen "):
        until = time.time() + LIMIT
        while name[5:] not in seen and time.time() < until:
            time.sleep(0.01)
        stream.sendall(str(seen.get(name[5:])).encode())
    elif name == "reset by the other side":
        stream.sendall(b"x")
        line(stream)
        reset(stream)
        return
    elif name == "closed with unread data":
        stream.sendall(b"x")
        select.select([stream], [], [], LIMIT)
        time.sleep(0.2)
    elif name == "half close, calling side first":
        received = b""
        while part := stream.recv(1 << 16):
            received += part
        stream.sendall(received)
    elif name in ("half close, other side first", "both close at once"):
        stream.shutdown(socket.SHUT_WR)
        seen[name] = rest(stream)
    elif name == "slow calling side":
        stream.sendall(BIG)
    elif name == "write to a closed one":
        line(stream)
    elif name == "keepalive":
        stream.sendall(line(stream).encode())
    else:
        if name == "urgent data in line":
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            stream.sendall(b"x")
        if name == "slow other side":
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            time.sleep(2)
        seen[name] = rest(stream)
    stream.close()


def serve(address, tcp, udp):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    datagrams = socket.socket(family, socket.SOCK_DGRAM)
    datagrams.bind((address, udp))

    def answer():
        while True:
            data, client = datagrams.recvfrom(1 << 16)
            datagrams.sendto(b"y" * 3000 if data == b"long" else data, client)

    threading.Thread(target=answer, daemon=True).start()
    listener = socket.create_server((address, tcp), family=family, backlog=64)
    print("ready", flush=True)
    while True:
        stream, _ = listener.accept()
        threading.Thread(target=serve_stream, args=(stream,), daemon=True).start()


class Caller:
    def __init__(self, address, tcp, udp, closed):
        self.address, self.tcp, self.udp, self.closed = address, tcp, udp, closed
        self.family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def call(self, name):
        stream = socket.create_connection((self.address, self.tcp), LIMIT)
        stream.sendall(name.encode() + b"\n")
        return stream

    def theirs(self, name):
        return self.call("seen " + name).recv(1000).decode()

    def datagrams(self, port):
        one = socket.socket(self.family, socket.SOCK_DGRAM)
        one.settimeout(5)
        one.connect((self.address, port))
        return one

    def refused(self, name):
        return outcome(lambda: socket.create_connection((self.address, self.closed), LIMIT))

    def reset_by_other(self, name):
        stream = self.call(name)
        stream.recv(1)
        stream.sendall(b"go\n")
        return rest(stream)

    def reset_by_caller(self, name):
        stream = self.call(name)
        stream.sendall(b"z" * 1000)
        time.sleep(0.3)
        reset(stream)
        return self.theirs(name)

    def unread(self, name):
        stream = self.call(name)
        stream.recv(1)
        stream.sendall(b"z" * 1000)
        return rest(stream)

    def half_first(self, name):
        stream = self.call(name)
        stream.sendall(BIG[:200_000])
        stream.shutdown(socket.SHUT_WR)
        return rest(stream)

    def half_second(self, name):
        stream = self.call(name)
        first = rest(stream)
        stream.sendall(BIG[:200_000])
        stream.shutdown(socket.SHUT_WR)
        return first, self.theirs(name)

    def both(self, name):
        stream = self.call(name)
        stream.shutdown(socket.SHUT_WR)
        return rest(stream), self.theirs(name)

    def urgent(self, name):
        stream = self.call(name)
        stream.recv(1)
        stream.sendall(b"ab")
        stream.send(b"c", socket.MSG_OOB)
        stream.sendall(b"d")
        stream.shutdown(socket.SHUT_WR)
        return self.theirs(name)

    def slow_other(self, name):
        stream = self.call(name)
        stream.sendall(BIG)
        stream.shutdown(socket.SHUT_WR)
        return rest(stream), self.theirs(name)

    def slow_caller(self, name):
        stream = self.call(name)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        time.sleep(2)
        return rest(stream)

    def keepalive(self, name):
        stream = self.call(name)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT):
            stream.setsockopt(socket.IPPROTO_TCP, option, 1)
        time.sleep(3.5)
        stream.sendall(b"still here\n")
        return stream.recv(100)

    def small_writes(self, name):
        stream = self.call(name)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(20_000):
            stream.sendall(number.to_bytes(7, "big"))
        stream.shutdown(socket.SHUT_WR)
        return rest(stream), self.theirs(name)

    def write_to_closed(self, name):
        stream = self.call(name)
        stream.sendall(b"go\n")
        found = [rest(stream)]
        for _ in range(2):
            found.append(outcome(lambda: stream.send(b"late")))
            time.sleep(0.5)
        return found

    def datagram_sizes(self, name):
        one = self.datagrams(self.udp)
        found = []
        for size in (0, 1, 1472, 1473, 9000, 40_000, 65_000):
            one.send(b"u" * size)
            found.append(outcome(lambda: len(one.recv(1 << 16))))
        return found

    def truncated(self, name):
        one = self.datagrams(self.udp)
        one.send(b"long")
        data, _, flags, _ = one.recvmsg(100)
        return len(data), bool(flags & socket.MSG_TRUNC)

    def unreachable(self, name):
        one = self.datagrams(self.closed)
        one.send(b"anybody?")
        return outcome(lambda: one.recv(100)), outcome(lambda: one.send(b"anybody?"))

    def unfragmented(self, name):
        one = self.datagrams(self.udp)
        if self.family == socket.AF_INET:
            one.setsockopt(socket.IPPROTO_IP, 10, 2)
        one.send(b"u" * 30_000)
        return outcome(lambda: len(one.recv(1 << 16)))


BEHAVIOURS = {
    "connection refused": Caller.refused,
    "reset by the other side": Caller.reset_by_other,
    "reset by the calling side": Caller.reset_by_caller,
    "closed with unread data": Caller.unread,
    "half close, calling side first": Caller.half_first,
    "half close, other side first": Caller.half_second,
    "both close at once": Caller.both,
    "urgent data in line": Caller.urgent,
    "slow other side": Caller.slow_other,
    "slow calling side": Caller.slow_caller,
    "keepalive": Caller.keepalive,
    "many small writes": Caller.small_writes,
    "write to a closed one": Caller.write_to_closed,
    "sizes of datagrams": Caller.datagram_sizes,
    "truncated datagram": Caller.truncated,
    "datagram to nobody": Caller.unreachable,
    "datagram that must not be cut": Caller.unfragmented,
}

if sys.argv[1] == "serve":
    serve(sys.argv[2], *map(int, sys.argv[3:]))
else:
    caller = Caller(sys.argv[2], *map(int, sys.argv[3:6]))
    for name, behaviour in BEHAVIOURS.items():
        if name in sys.argv[6:]:
            continue
        print(f"{name}: {outcome(lambda: behaviour(caller, name))}", flush=True)
