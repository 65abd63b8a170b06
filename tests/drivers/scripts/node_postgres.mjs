// node-postgres: pg.Client, pg.Pool, pg-cursor and pg-copy-streams.

import { pipeline as joined } from "node:stream/promises";
import { Readable } from "node:stream";

import { load, NotApplicable, play, sleep } from "./playing.mjs";
import { scenariosFor } from "./scenarios.mjs";

const pg = load("pg");
const Cursor = load("pg-cursor");
const streams = load("pg-copy-streams");
const CANCEL_AFTER = 400;

class Session {
  constructor(client) {
    this.client = client;
    this.messages = [];
    this.warnings = [];
    client.on("notification", ({ channel, payload }) => this.messages.push([channel, payload]));
    client.on("notice", ({ message }) => this.warnings.push(message));
    client.on("error", () => {});
  }

  async query(text, values) {
    return (await this.client.query({ text, values, rowMode: "array" })).rows;
  }

  prepare(name, text) {
    return async (...values) => (await this.client.query({ name, text, values, rowMode: "array" })).rows;
  }

  async unnamed(text, values) {
    return (await this.client.query({ text, values, rowMode: "array", queryMode: "extended" })).rows;
  }

  async script(text) {
    const results = await this.client.query({ text, rowMode: "array" });
    return results.map((result) => result.rows);
  }

  async many(table, rows) {
    for (const row of rows) await this.client.query(`insert into ${table} values ($1, $2)`, row);
    return rows.length;
  }

  async together() {
    throw new NotApplicable("the driver sends one statement at a time");
  }

  async begin(action) {
    return this.#block("begin", "commit", "rollback", action);
  }

  async savepoint(action) {
    return this.#block("savepoint inner_one", "release inner_one", "rollback to inner_one", action);
  }

  async #block(first, last, undo, action) {
    await this.query(first);
    try {
      const result = await action(this);
      await this.query(last);
      return result;
    } catch (error) {
      await this.query(undo).catch(() => {});
      throw error;
    }
  }

  async stream(text, size, most) {
    const cursor = this.client.query(new Cursor(text, [], { rowMode: "array" }));
    const rows = [];
    for (;;) {
      const some = await cursor.read(Math.min(size, most - rows.length));
      if (some.length === 0) break;
      rows.push(...some);
    }
    await cursor.close();
    return rows;
  }

  async copyIn(text, lines) {
    await joined(Readable.from(lines), this.client.query(streams.from(text)));
  }

  copyInBadly(text, lines) {
    return this.copyIn(text, lines);
  }

  copyOutBadly(text) {
    return this.copyOut(text);
  }

  async copyOut(text) {
    const parts = [];
    for await (const part of this.client.query(streams.to(text))) parts.push(part);
    return Buffer.concat(parts).toString();
  }

  async cancelled(text) {
    const query = new pg.Query(text);
    const done = new Promise((resolve, reject) => {
      query.on("end", resolve);
      query.on("error", reject);
    });
    this.client.query(query);
    await sleep(CANCEL_AFTER);
    const { host, port } = this.client;
    new pg.Client({ host, port, ssl: false }).cancel(this.client, query);
    return done;
  }

  async listen(channel) {
    await this.query(`listen ${channel}`);
  }

  async unlisten(channel) {
    await this.query(`unlisten ${channel}`);
  }

  async received(count, milliseconds) {
    for (let waited = 0; this.messages.length < count && waited < milliseconds; waited += 10) await sleep(10);
    return this.messages.splice(0);
  }

  notices() {
    return this.warnings.splice(0);
  }

  pid() {
    return this.client.processID;
  }

  async close() {
    await Promise.race([this.client.end().catch(() => {}), sleep(2000)]);
  }
}

const driver = {
  async connect(connectionString, { application = "drivers", settings = {}, tls = false }) {
    const options = Object.entries(settings).map(([name, value]) => `-c ${name}=${value}`).join(" ");
    const client = new pg.Client({ connectionString, application_name: application, options, ssl: tls });
    const session = new Session(client);
    await client.connect();
    return session;
  },

  async pooled(connectionString, clients, turns) {
    const pool = new pg.Pool({ connectionString, max: 4 });
    const client = async (number) => {
      const answers = [];
      for (let turn = 0; turn < turns; turn += 1) {
        const { rows } = await pool.query({ text: "select $1::int4", values: [number * 100 + turn], rowMode: "array" });
        answers.push(rows[0][0]);
      }
      return answers;
    };
    const answers = await Promise.all([...Array(clients).keys()].map(client));
    await pool.end();
    return answers;
  },

  async pooledAfterLoss(connectionString) {
    const pool = new pg.Pool({ connectionString, max: 1 });
    pool.on("error", () => {});
    const seen = [];
    for (const text of ["select 1", "select pg_terminate_backend(pg_backend_pid())", "select 2", "select 3"]) {
      try {
        seen.push((await pool.query({ text, rowMode: "array" })).rows);
      } catch (error) {
        seen.push(error.code);
      }
      await sleep(100);
    }
    await pool.end();
    return seen;
  },
};

await play(scenariosFor(driver));
