"""redis-py in cluster mode against three nodes.

    redis_py.py HOST:PORT=PID HOST:PORT=PID HOST:PORT=PID

Runs all checks with RESP2 and with RESP3, then kills the leader and checks that the clients recover. Ends with 0 if every
check holds.
"""

import os
import signal
import sys
import time

from redis.cluster import LoadBalancingStrategy, RedisCluster
from redis.exceptions import RedisError

# How long a client may need for a new leader, and a node to call a peer dead.
DEADLINE_S = 20


def main():
    pids = dict(argument.rsplit("=", 1) for argument in sys.argv[1:])
    clients = []
    for protocol in (2, 3):
        writer = connect(pids, protocol)
        reader = connect(pids, protocol, LoadBalancingStrategy.ROUND_ROBIN_REPLICAS)
        table(writer)
        keys(writer, f"p{protocol}")
        connection_commands(writer, protocol)
        topology(writer, dead=0)
        reads_at_replicas(writer, reader, f"r{protocol}")
        clients += [writer, reader]
        print(f"redis-py with RESP{protocol}: commands, topology and reads at replicas are right")
    failover(pids, clients)
    print("redis-py: every client found the new leader")


def connect(pids, protocol, strategy=None):
    host, port = next(iter(pids)).rsplit(":", 1)
    return RedisCluster(
        host=host,
        port=int(port),
        protocol=protocol,
        load_balancing_strategy=strategy,
        decode_responses=True,
        client_name=f"check{protocol}",
        socket_timeout=5,
    )


def same(seen, expected, what):
    if seen != expected:
        raise AssertionError(f"{what}: {seen!r}, expected {expected!r}")


def wait(what, condition):
    """The first true value of `condition`, whose errors of the client count as false."""
    deadline, last = time.monotonic() + DEADLINE_S, None
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except RedisError as error:
            last = error
        time.sleep(0.05)
    raise AssertionError(f"not within {DEADLINE_S} s: {what}; last error: {last!r}")


def master(client):
    return client.get_primaries()[0]


def table(client):
    """COMMAND as Redis 7 answers it: ten elements, and the keys of a command found by the server."""
    node = master(client)
    commands = client.command(target_nodes=node)
    same(client.execute_command("COMMAND COUNT", target_nodes=node), len(commands), "COMMAND COUNT")
    same(sorted(client.execute_command("COMMAND LIST", target_nodes=node)), sorted(commands), "COMMAND LIST")
    get = commands["get"]
    same((get["arity"], get["first_key_pos"], get["last_key_pos"]), (2, 1, 1), "COMMAND get")
    same("readonly" in get["flags"], True, "flags of get")
    same(len(get["key_specifications"]), 1, "key specifications of get")
    same(commands["ping"]["key_specifications"], [], "key specifications of ping")
    subcommands = {entry[0]: entry for entry in commands["cluster"]["subcommands"]}
    same(len(subcommands["cluster|slots"]), 10, "elements of cluster|slots")
    found = client.execute_command("COMMAND INFO", "get", "absent", target_nodes=node)
    same([found[0][0], found[1]], ["get", None], "COMMAND INFO")
    seen = client.execute_command("COMMAND GETKEYS", "MSET", "a", "1", "b", "2", target_nodes=node)
    same(seen, ["a", "b"], "COMMAND GETKEYS")
    docs = client.execute_command("COMMAND DOCS", "get", target_nodes=node)
    docs = docs if isinstance(docs, dict) else {docs[0]: docs[1]}
    same(list(docs), ["get"], "COMMAND DOCS")


def keys(client, prefix):
    names = [f"{prefix}:{number}" for number in range(20)]
    client.flushdb(target_nodes=master(client))
    client.mset_nonatomic(dict.fromkeys(names, "1"))
    same(client.mget_nonatomic(names + [f"{prefix}:absent"]), ["1"] * 20 + [None], "MGET")
    same(client.dbsize(target_nodes=master(client)), 20, "DBSIZE")
    with client.pipeline() as pipeline:
        for name in names:
            pipeline.incr(name).get(name)
        same(pipeline.execute(), [2, "2"] * 20, "a pipeline over slots")
    text = f"{prefix}:text"
    same(client.set(text, "a", ex=100), True, "SET EX")
    same(client.set(text, "b", nx=True), None, "SET NX")
    same(client.set(text, "b", xx=True, keepttl=True, get=True), "a", "SET XX KEEPTTL GET")
    same(98 <= client.ttl(text) <= 100, True, "TTL")
    same((client.append(text, "cd"), client.strlen(text), client.get(text)), (3, 3, "bcd"), "APPEND")
    same((client.incrby(names[0], 5), client.decr(names[0])), (7, 6), "INCRBY, DECR")
    same((client.exists(text, names[1]), client.delete(text, names[1])), (2, 2), "EXISTS, DEL")
    client.set(text, "gone", px=200)
    wait("the end of a key with PX", lambda: client.get(text) is None)


def connection_commands(client, protocol):
    node = master(client)
    same(client.ping(target_nodes="all"), True, "PING")
    same(client.echo("x", target_nodes=node), "x", "ECHO")
    same(client.client_getname(target_nodes=node), f"check{protocol}", "CLIENT GETNAME")
    same(client.client_id(target_nodes=node) > 0, True, "CLIENT ID")
    same(client.info(target_nodes=node)["role"], "master", "INFO")
    same(client.config_get("databases", target_nodes=node), {"databases": "1"}, "CONFIG GET")
    same(client.cluster_keyslot("foo"), 12182, "CLUSTER KEYSLOT")


def topology(client, dead):
    """What every node that runs says of the cluster, with so many nodes dead."""
    node = master(client)
    nodes = client.execute_command("CLUSTER NODES", target_nodes=node)
    failed = [name for name, seen in nodes.items() if "fail" in seen["flags"]]
    same((len(nodes), len(failed)), (3, dead), f"CLUSTER NODES: {nodes}")
    same(all(nodes[name]["connected"] is False for name in failed), True, f"links to dead nodes: {nodes}")
    slots = client.execute_command("CLUSTER SLOTS", target_nodes=node)
    [(span, shard)] = slots.items()
    same((span, len(shard["replicas"])), ((0, 16383), 2 - dead), f"CLUSTER SLOTS: {slots}")
    [shard] = client.execute_command("CLUSTER SHARDS", target_nodes=node)
    health = sorted(seen["health"] for seen in shard["nodes"])
    same(health, ["fail"] * dead + ["online"] * (3 - dead), "CLUSTER SHARDS")


def reads_at_replicas(writer, reader, prefix):
    """A read at a follower sees every write acknowledged before it."""
    for number in range(50):
        writer.set(f"{prefix}:{number}", number)
        same(reader.get(f"{prefix}:{number}"), str(number), "a read at a replica")
    for node in writer.get_replicas():
        same(writer.execute_command("READONLY", target_nodes=node), True, "READONLY")
        same(writer.execute_command("READWRITE", target_nodes=node), True, "READWRITE")


def failover(pids, clients):
    leader = master(clients[0])
    for number, client in enumerate(clients):
        client.set(f"failover:{number}", "before")
    address = f"{leader.host}:{leader.port}"
    address = address if address in pids else address.replace("localhost", "127.0.0.1")
    os.kill(int(pids[address]), signal.SIGKILL)
    for number, client in enumerate(clients):
        key = f"failover:{number}"
        wait("a read after the leader's death", lambda: client.get(key) == "before")
        wait("a write after the leader's death", lambda: client.set(key, "after"))
        wait("the new value", lambda: client.get(key) == "after")

    def settled():
        try:
            topology(clients[0], dead=1)
            return True
        except AssertionError:
            clients[0].nodes_manager.initialize()
            return False

    wait("a topology that shows the dead node", settled)
    topology(clients[2], dead=1)


main()
