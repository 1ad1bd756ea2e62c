// ioredis in cluster mode against three nodes.
//
//     ioredis.js HOST:PORT=PID HOST:PORT=PID HOST:PORT=PID
//
// Runs all checks with reads at the master and with reads at replicas, then kills the leader and checks that both clients
// recover. Ends with 0 if every check holds.

"use strict";

const assert = require("node:assert/strict");
const Redis = require("ioredis");

// How long a client may need for a new leader.
const DEADLINE_MS = 20_000;

const pids = new Map(
  process.argv.slice(2).map((argument) => {
    const at = argument.lastIndexOf("=");
    return [argument.slice(0, at), Number(argument.slice(at + 1))];
  }),
);

function connect(scaleReads) {
  const nodes = [...pids.keys()].map((address) => {
    const at = address.lastIndexOf(":");
    return { host: address.slice(0, at), port: Number(address.slice(at + 1)) };
  });
  const cluster = new Redis.Cluster(nodes, { scaleReads, redisOptions: { commandTimeout: 5_000 } });
  // It reports every lost connection here and connects again by itself.
  cluster.on("error", () => {});
  return cluster;
}

async function wait(what, condition) {
  const deadline = Date.now() + DEADLINE_MS;
  let last;
  while (Date.now() < deadline) {
    try {
      const value = await condition();
      if (value) return value;
    } catch (error) {
      last = error;
    }
    await new Promise((done) => setTimeout(done, 50));
  }
  throw new Error(`not within ${DEADLINE_MS} ms: ${what}; last error: ${last}`);
}

async function keys(cluster, prefix) {
  const names = Array.from({ length: 20 }, (_, number) => `${prefix}:${number}`);
  assert.equal(await cluster.mset(Object.fromEntries(names.map((name) => [`{${prefix}}${name}`, name]))), "OK");
  assert.deepEqual(await cluster.mget(...names.map((name) => `{${prefix}}${name}`)), names);
  // Each read sees the write before it, whichever node answers.
  for (const name of names) {
    assert.equal(await cluster.set(name, name), "OK");
    assert.equal(await cluster.get(name), name);
  }
  const pipeline = cluster.pipeline();
  for (const name of names) pipeline.append(name, "!");
  assert.deepEqual(await pipeline.exec(), names.map((name) => [null, name.length + 1]));
  const reads = cluster.pipeline();
  for (const name of names) reads.get(name);
  assert.deepEqual(await reads.exec(), names.map((name) => [null, `${name}!`]));
  const text = `${prefix}:text`;
  assert.equal(await cluster.set(text, "a", "EX", 100, "NX"), "OK");
  assert.equal(await cluster.set(text, "b", "NX"), null);
  assert.equal(await cluster.set(text, "b", "XX", "KEEPTTL", "GET"), "a");
  const ttl = await cluster.ttl(text);
  assert.ok(98 <= ttl && ttl <= 100, `TTL ${ttl}`);
  assert.equal(await cluster.strlen(text), 1);
  assert.equal(await cluster.exists(text), 1);
  assert.equal(await cluster.del(text), 1);
  await cluster.set(text, "gone", "PX", 200);
  await wait("the end of a key with PX", async () => (await cluster.get(text)) === null);
}

async function failover(clusters) {
  const leader = clusters[0].nodes("master")[0].options;
  for (const [number, cluster] of clusters.entries()) await cluster.set(`failover:${number}`, "before");
  process.kill(pids.get(`${leader.host}:${leader.port}`), "SIGKILL");
  for (const [number, cluster] of clusters.entries()) {
    const key = `failover:${number}`;
    await wait("a read after the leader's death", async () => (await cluster.get(key)) === "before");
    await wait("a write after the leader's death", async () => (await cluster.set(key, "after")) === "OK");
    await wait("the new value", async () => (await cluster.get(key)) === "after");
  }
}

async function main() {
  const clusters = [];
  for (const scaleReads of ["master", "slave"]) {
    const cluster = connect(scaleReads);
    clusters.push(cluster);
    await wait("a connection", async () => (await cluster.ping()) === "PONG");
    assert.equal(cluster.nodes("slave").length, 2);
    await keys(cluster, scaleReads);
    console.log(`ioredis with scaleReads "${scaleReads}": commands, pipelines and reads are right`);
  }
  await failover(clusters);
  console.log("ioredis: every client found the new leader");
  for (const cluster of clusters) cluster.disconnect();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
