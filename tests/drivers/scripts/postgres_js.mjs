// postgres.js: tagged templates over a pool of its own; every statement gets a name unless told otherwise.

import { Readable, Writable } from "node:stream";
import { pipeline as joined } from "node:stream/promises";

import { load, NotApplicable, play, sleep } from "./playing.mjs";
import { scenariosFor } from "./scenarios.mjs";

const postgres = load("postgres");
const CANCEL_AFTER = 400;

class Session {
  constructor(sql, options, messages = [], warnings = []) {
    this.sql = sql;
    this.options = options;
    this.messages = messages;
    this.warnings = warnings;
  }

  async query(text, values = []) {
    return rows(await this.sql.unsafe(text, values, { prepare: values.length > 0 }).values());
  }

  prepare(_name, text) {
    return async (...values) => rows(await this.sql.unsafe(text, values, { prepare: true }).values());
  }

  async unnamed(text, values) {
    return rows(await this.sql.unsafe(text, values, { prepare: false }).values());
  }

  async script(text) {
    return (await this.sql.unsafe(text).simple()).map((result) => result.length);
  }

  async many(table, given) {
    const result = await this.sql`insert into ${this.sql(table)} ${this.sql(given.map(([id, note]) => ({ id, note })))}`;
    return result.count;
  }

  async together(statements) {
    const asked = statements.map(([text, values]) => this.sql.unsafe(text, values, { prepare: true }).values());
    const answers = await Promise.allSettled(asked);
    return answers.map(({ value, reason }) => (reason ? reason.code : rows(value)));
  }

  async begin(action) {
    return this.sql.begin((sql) => action(new Session(sql, this.options, this.messages, this.warnings)));
  }

  async savepoint(action) {
    return this.sql.savepoint((sql) => action(new Session(sql, this.options, this.messages, this.warnings)));
  }

  async stream(text, size, most) {
    const found = [];
    for await (const some of this.sql.unsafe(text).values().cursor(size)) {
      found.push(...rows(some));
      if (found.length >= most) break;
    }
    return found;
  }

  async copyIn(text, lines) {
    await joined(Readable.from(lines), await this.sql.unsafe(text).writable());
  }

  copyInBadly() {
    throw new NotApplicable("the driver waits for ever when the server refuses what is copied in");
  }

  copyOutBadly() {
    throw new NotApplicable("an error while copying out ends the program");
  }

  async copyOut(text) {
    const parts = [];
    const sink = new Writable({
      write(part, _encoding, done) {
        parts.push(part);
        done();
      },
    });
    await joined(await this.sql.unsafe(text).readable(), sink);
    return Buffer.concat(parts).toString();
  }

  async cancelled(text) {
    const query = this.sql.unsafe(text);
    const done = query.execute();
    await sleep(CANCEL_AFTER);
    query.cancel();
    return rows(await done);
  }

  // The driver listens on a connection of its own.
  async listen(channel) {
    this.listening = await this.sql.listen(channel, (payload) => this.messages.push([channel, payload]));
  }

  async unlisten() {
    await this.listening.unlisten();
  }

  async received(count, milliseconds) {
    for (let waited = 0; this.messages.length < count && waited < milliseconds; waited += 10) await sleep(10);
    return this.messages.splice(0);
  }

  notices() {
    return this.warnings.splice(0);
  }

  pid() {
    throw new NotApplicable("the driver does not show it");
  }

  async close() {
    await this.sql.end({ timeout: 2 });
  }
}

// After a statement that failed between two rows, the driver leaves holes before the rows of the next one.
function rows(result) {
  return [...result].filter(Boolean).map((row) => [...row]);
}

function open(url, options) {
  const warnings = [];
  const sql = postgres(url, { max: 1, onnotice: ({ message }) => warnings.push(message), ...options });
  return new Session(sql, options, [], warnings);
}

const driver = {
  async connect(url, { application = "drivers", settings = {}, tls = false }) {
    return open(url, { connection: { application_name: application, ...settings }, ssl: tls });
  },

  async pooled(url, clients, turns) {
    const sql = postgres(url, { max: 4 });
    const client = async (number) => {
      const answers = [];
      for (let turn = 0; turn < turns; turn += 1) {
        answers.push((await sql`select ${number * 100 + turn}::int4 as n`)[0].n);
      }
      return answers;
    };
    const answers = await Promise.all([...Array(clients).keys()].map(client));
    await sql.end();
    return answers;
  },

  async pooledAfterLoss(url) {
    const sql = postgres(url, { max: 1 });
    const seen = [];
    for (const text of ["select 1", "select pg_terminate_backend(pg_backend_pid())", "select 2", "select 3"]) {
      try {
        seen.push(rows(await sql.unsafe(text).values()));
      } catch (error) {
        seen.push(error.code);
      }
      await sleep(100);
    }
    await sql.end({ timeout: 2 });
    return seen;
  },
};

await play(scenariosFor(driver));
