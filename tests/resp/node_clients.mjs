// ioredis and node-redis against the server at a port of this machine: node node_clients.mjs PORT.
// Prints a line for each that did as its users expect; see test_libraries.py.
import assert from "node:assert/strict";
import { Redis } from "ioredis";
import { createClient } from "redis";

const port = Number(process.argv[2]);
const many = [...Array(5000).keys()];

async function tryIoredis() {
  const client = new Redis(port), other = new Redis(port, { enableAutoPipelining: true });
  await client.flushall();
  assert.equal(await client.set("k", "v", "EX", 100), "OK");
  assert.deepEqual(await client.getBuffer("k"), Buffer.from("v"));
  const replies = await client.pipeline().set("n", "x").incr("n").get("n").exec();
  assert.match(replies[1][0].message, /not an integer/);
  assert.equal(replies[2][1], "x");
  assert.deepEqual(await client.multi().set("a", 1).incr("a").exec(), [[null, "OK"], [null, 2]]);
  await client.watch("a");
  await other.set("a", 9);
  assert.equal(await client.multi().set("a", 10).exec(), null);
  const keys = [];
  for await (const some of client.scanStream({ count: 1 })) keys.push(...some);
  assert.deepEqual(keys.sort(), ["a", "k", "n"]);
  await assert.rejects(client.lpush("l", 1), /unknown command/);
  assert.deepEqual(await Promise.all(many.map(() => client.incr("c"))), many.map((n) => n + 1));
  assert.deepEqual(await Promise.all([other.get("k"), other.get("a")]), ["v", "9"]);
  const listener = new Redis(port), heard = [];
  const all = new Promise((done) => {
    const note = (...words) => heard.push(words) === 3 && done();
    listener.on("message", note);
    listener.on("pmessage", note);
  });
  assert.equal(await listener.subscribe("news", "sport"), 2);
  assert.equal(await listener.psubscribe("ne*"), 3);
  assert.equal(await client.publish("news", "one"), 2);
  assert.equal(await client.publish("sport", "two"), 1);
  await all;
  assert.deepEqual(heard, [["news", "one"], ["ne*", "news", "one"], ["sport", "two"]]);
  assert.equal(await listener.unsubscribe("news", "sport"), 1);
  await listener.quit();
  await client.quit();
  await other.quit();
  console.log("ioredis");
}

async function tryNodeRedis(RESP) {
  const client = createClient({ url: `redis://127.0.0.1:${port}`, RESP });
  const other = client.duplicate();
  await client.connect();
  await other.connect();
  await client.flushAll();
  assert.equal(await client.set("k", "v", { EX: 100 }), "OK");
  assert.ok(await client.ttl("k") > 0);
  assert.deepEqual(await client.mGet(["k", "none"]), ["v", null]);
  assert.deepEqual(await client.multi().set("a", "1").incr("a").exec(), ["OK", 2]);
  await client.watch("a");
  await other.set("a", "9");
  await assert.rejects(client.multi().set("a", "1").exec(), { name: "Error" });
  assert.equal(await client.get("a"), "9");
  const keys = [];
  for await (const some of client.scanIterator({ COUNT: 1 })) keys.push(...some);
  assert.deepEqual(keys.sort(), ["a", "k"]);
  await assert.rejects(client.lPush("l", "1"), /unknown command/);
  assert.deepEqual(await Promise.all(many.map(() => client.incr("c"))), many.map((n) => n + 1));
  const listener = client.duplicate(), heard = [];
  await listener.connect();
  let done;
  const all = new Promise((resolve) => { done = resolve; });
  const note = (message, channel) => heard.push([channel, message]) === 3 && done();
  await listener.subscribe("news", note);
  await listener.pSubscribe("ne*", note);
  await listener.sSubscribe("news", note);
  assert.equal(await client.publish("news", "one"), 2);
  assert.equal(await client.sPublish("news", "shard"), 1);
  await all;
  assert.deepEqual(heard, [["news", "one"], ["news", "one"], ["news", "shard"]]);
  await listener.unsubscribe("news");
  await listener.close();
  await client.close();
  await other.close();
  console.log(`node-redis, RESP${RESP}`);
}

await tryIoredis();
await tryNodeRedis(2);
await tryNodeRedis(3);
