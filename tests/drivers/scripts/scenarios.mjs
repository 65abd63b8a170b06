// The scenarios for drivers in JavaScript.  A driver has connect(url, options), which gives a session with
//   query(sql, values), prepare(name, sql), unnamed(sql, values), together(statements), script(sql), begin(action),
//   stream(sql, size, most), copyIn(sql, lines), copyOut(sql), cancelled(sql), listen(channel), unlisten(channel),
//   received(count, milliseconds), close();
// rows are arrays of values.  What a driver lacks throws NotApplicable.

import { sleep } from "./playing.mjs";

const TURNS = 12;
const ZONES = ["Asia/Kathmandu", "America/Caracas"];
const MANY = 20000;

const EXPRESSIONS = [
  "null", "true", "32767::int2", "-2147483648::int4", "9223372036854775807::int8", "1.5::float8", "'NaN'::float8",
  "12345678901234567890.000100::numeric", "'h\u00e9llo \u2603'::text", "'padded'::char(8)", "'\\x00ff10'::bytea",
  "'2024-02-29'::date", "'12:34:56.789'::time", "'2024-02-29 12:34:56.789+02'::timestamptz",
  "'3 days 04:05:06'::interval", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid", '\'{"a": [1, null, "x"]}\'::jsonb',
  "array[1, 2, null]::int4[]", "array['a', 'b,c', null]::text[]", "'192.168.1.5/24'::inet", "'[1,5)'::int4range",
  "row(1, 'two')", "'happy'::mood",
];

const VALUES = [
  ["int4", 42], ["int8", "1099511627776"], ["float8", 0.1], ["numeric", "1234567.8900"],
  ["text", "quote ' backslash \\ percent % snow \u2603"], ["text", ""], ["text", null], ["bool", false],
  ["bytea", Buffer.from([...Array(256).keys()])], ["timestamptz", new Date(Date.UTC(2024, 0, 2, 3, 4, 5, 678))],
  ["uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"], ["int4[]", [1, 2, 3]], ["text[]", ["a", 'b"c', "d,e"]],
];

const FAILING = {
  syntax: "selekt 1", table: "select * from no_such_table", column: "select nothing from items",
  division: "select 1 / 0", cast: "select 'x'::int4", unique: "insert into items values (1, 'again')",
  "not null": "insert into items values (null, 'x')", permission: "select * from pg_authid",
  function: "select fail_with('P1234')", "row in the middle": "select 1 / (50 - id) from items order by id",
};

const ten = (n) => ["select $1::int4 * 10", [n]];

export function scenariosFor(driver) {
  async function using(count, place, action, options = {}) {
    const sessions = [];
    try {
      for (let n = 0; n < count; n += 1) sessions.push(await driver.connect(place.url, options));
      return await action(...sessions);
    } finally {
      await Promise.all(sessions.map((session) => session.close()));
    }
  }

  const value = async (session, sql, values) => (await session.query(sql, values))[0][0];

  async function once(url) {
    const session = await driver.connect(url, {});
    try {
      return await session.query("select 1");
    } finally {
      await session.close();
    }
  }

  async function connect(place, notes) {
    await using(1, place, async (session) => {
      notes.note("first answer", await session.query("select 1"));
      notes.note("application_name", await value(session, "show application_name"));
      notes.note("client_encoding", await value(session, "show client_encoding"));
      notes.note("timezone", [await value(session, "show timezone"), await value(session, "show work_mem")]);
      notes.note("database name", (await value(session, "select current_database()")) === place.database);
      await notes.outcome("process number", async () => session.pid() === (await value(session, "select pg_backend_pid()")));
    }, { application: `drivers ${notes.worker}`, settings: { timezone: "Asia/Tokyo", work_mem: "7MB" } });
    await notes.outcome("wrong password", () => once(place.changed({ password: "wrong" })));
    await notes.outcome("unknown database", () => once(place.changed({ database: "no_such_database" })));
    await using(4, place, async (...sessions) => {
      for (let turn = 0; turn < 3; turn += 1) {
        notes.note(`several, turn ${turn}`, await Promise.all(sessions.map((s, n) => value(s, "select $1::int4", [n]))));
      }
    });
  }

  async function types(place, notes) {
    await using(1, place, async (session) => {
      for (const sql of EXPRESSIONS) await notes.outcome(sql, () => value(session, `select ${sql}`));
      const wide = [...Array(300).keys()].map((n) => `${n} as c${n}`).join(", ");
      notes.note("many columns", (await session.query(`select ${wide}`))[0].length);
      notes.note("no rows", await session.query("select id from items where false"));
    });
  }

  async function parameters(place, notes) {
    await using(1, place, async (session) => {
      for (const [kind, given] of VALUES) {
        await notes.outcome(`${kind} ${String(given).slice(0, 20)}`, () => value(session, `select $1::${kind}`, [given]));
      }
      const text = "x\u2603".repeat(100000);
      notes.note("long text", (await value(session, "select $1::text", [text])) === text);
      notes.note("several", await session.query("select id, name from items where id between $1 and $2 order by id", [3, 5]));
      await notes.outcome("bad value", () => session.query("select $1::text::int4", ["seven"]));
      notes.note("after it", await session.query("select $1::int4", [7]));
    });
  }

  async function named(place, notes) {
    const table = `named_${notes.worker}`;
    await using(2, place, async (session, other) => {
      const plus = session.prepare("plus", "select $1::int4 + 1");
      const item = session.prepare("item", "select name from items where id = $1::int4");
      const times = other.prepare("plus", "select $1::int4 * 2");
      for (let n = 1; n <= TURNS; n += 1) notes.note(`turn ${n}`, [await plus(n), await item(n), await times(n)]);
      const divide = session.prepare("divide", "select 10 / $1::int4");
      notes.note("division", await divide(5));
      await notes.outcome("division by zero", () => divide(0));
      notes.note("after it", await divide(2));
      await session.begin(async (tx) => {
        const inside = tx.prepare("plus", "select $1::int4 + 1");
        notes.note("in a transaction", [await inside(1), await inside(2)]);
      });
      await notes.outcome("error in a transaction", () =>
        session.begin(async (tx) => tx.prepare("divide", "select 10 / $1::int4")(0)));
      notes.note("after the transaction", [await plus(2), await item(3), await divide(10)]);
      await notes.outcome("syntax error", () => session.prepare("wrong", "selekt $1::int4")(1));
      await session.query(`drop table if exists ${table}`);
      await session.query(`create table ${table} (a int4)`);
      await session.query(`insert into ${table} values (1)`);
      const everything = session.prepare("everything", `select * from ${table} where a = $1::int4`);
      for (let n = 0; n < TURNS; n += 1) await everything(1);
      notes.note("before the change", await everything(1));
      await other.query(`alter table ${table} add column b text default 'new'`);
      for (let n = 0; n < 3; n += 1) await notes.outcome(`after the change, turn ${n}`, () => everything(1));
      await session.query(`drop table ${table}`);
      for (let n = 0; n < 30; n += 1) await session.prepare(`many ${n}`, `select ${n} + $1::int4`)(n);
      notes.note("many statements", await plus(41));
    });
  }

  async function unnamed(place, notes) {
    await using(1, place, async (session) => {
      for (let n = 0; n < TURNS; n += 1) notes.note(`turn ${n}`, await session.unnamed("select $1::int4 + $2::int4", [n, 1]));
      await notes.outcome("division by zero", () => session.unnamed("select 1 / $1::int4", [0]));
      notes.note("after it", await session.unnamed("select 1 / $1::int4", [1]));
      await notes.outcome("error in a transaction", () =>
        session.begin(async (tx) => {
          notes.note("in a transaction", await tx.unnamed("select $1::text", ["a"]));
          await tx.unnamed("select 1 / $1::int4", [0]);
        }));
      notes.note("after the transaction", await session.unnamed("select $1::text", ["b"]));
      notes.note("many rows", (await session.unnamed("select generate_series(1, $1::int4)", [MANY])).length);
    });
  }

  async function batch(place, notes) {
    const table = `work_${notes.worker}`;
    await using(1, place, async (session) => {
      await session.query(`delete from ${table}`);
      await notes.outcome("many", () => session.many(table, [...Array(250).keys()].map((n) => [n, `row ${n}`])));
      notes.note("rows", await session.query(`select count(*), sum(id) from ${table}`));
      await notes.outcome("a row twice", () => session.many(table, [[1000, "new"], [1, "twice"], [1001, "never"]]));
      notes.note("rows after it", await session.query(`select count(*), sum(id) from ${table}`));
      await session.query(`delete from ${table}`);
    });
  }

  async function pipeline(place, notes) {
    await using(1, place, async (session) => {
      notes.note("many", await session.together([...Array(50).keys()].map(ten)));
      for (let n = 0; n < TURNS; n += 1) notes.note(`turn ${n}`, await session.together([n, n + 1, n + 2].map(ten)));
      const broken = [ten(1), ten(2), ["select 1 / $1::int4", [0]], ten(3)];
      notes.note("error in the middle", await session.together(broken));
      await notes.outcome("error in a transaction", () =>
        session.begin(async (tx) => {
          notes.note("in a transaction", await tx.together(broken));
        }));
      notes.note("after the transaction", await session.together([ten(5)]));
    });
  }

  async function transactions(place, notes) {
    const table = `work_${notes.worker}`;
    const counted = `select count(*)::int4 from ${table}`;
    const insert = `insert into ${table} values ($1::int4, 'x')`;
    await using(2, place, async (session, other) => {
      await session.query(`delete from ${table}`);
      await session.begin(async (tx) => {
        await tx.query(insert, [1]);
        notes.note("seen by itself, by another", [await value(tx, counted), await value(other, counted)]);
      });
      notes.note("committed", await value(other, counted));
      await notes.outcome("rolled back", () =>
        session.begin(async (tx) => {
          await tx.query(insert, [2]);
          await tx.query("select 1 / 0");
        }));
      notes.note("after rolling back", await value(other, counted));
      await session.begin(async (tx) => {
        await tx.query(insert, [3]);
        await notes.outcome("savepoint", () =>
          tx.savepoint(async (inner) => {
            await inner.query(insert, [4]);
            await inner.query("selekt");
          }));
        await tx.savepoint(async (inner) => inner.query(insert, [5]));
      });
      notes.note("with savepoints", await other.query(`select id from ${table} order by id`));
      await notes.outcome("deferred constraint", () =>
        session.begin(async (tx) => tx.query("insert into children values ($1::int4, -1)", [notes.worker])));
      await session.query(`delete from ${table}`);
    });
    await using(1, place, async (session) => {
      const seen = new Set();
      for (let n = 0; n < 40; n += 1) {
        seen.add(await value(session, "select pg_backend_pid()"));
        await sleep(5);
      }
      notes.backends = seen.size;
    });
  }

  async function errors(place, notes) {
    await using(1, place, async (session) => {
      for (const [name, sql] of Object.entries(FAILING)) {
        await notes.outcome(name, () => session.query(sql));
        notes.note(`after ${name}`, await session.query("select $1::int4", [1]));
        await notes.outcome(`${name} in a transaction`, () =>
          session.begin(async (tx) => {
            await tx.query("select 1");
            await tx.query(sql);
          }));
      }
      await session.query("set statement_timeout to '100ms'");
      await notes.outcome("statement_timeout", () => session.query("select pg_sleep(10)"));
      await session.query("reset statement_timeout");
      await notes.outcome("notices", async () => {
        await session.query("do $do$ begin raise notice 'one'; raise warning 'two'; end $do$");
        return session.notices();
      });
      await notes.outcome("several statements", () => session.script("select 1; select 2; select 3"));
      await notes.outcome("several, one fails", () => session.script("select 1; select 1 / 0; select 3"));
      notes.note("after all", await session.query("select $1::int4", [1]));
    });
  }

  async function cursors(place, notes) {
    await using(2, place, async (session, other) => {
      await session.begin(async (tx) => {
        notes.note("all", await tx.stream("select id from items order by id", 7, 1000));
      });
      await session.begin(async (tx) => {
        notes.note("some", await tx.stream("select id from items order by id", 10, 15));
        notes.note("meanwhile", await other.query("select count(*) from items"));
      });
      await notes.outcome("error in the middle", () =>
        session.begin(async (tx) => tx.stream("select 1 / (50 - id) from items order by id", 10, 1000)));
      notes.note("after the error", await session.query("select $1::int4", [1]));
      await session.begin(async (tx) => {
        notes.note("many", (await tx.stream("select generate_series(1, 10000)", 3000, 10000)).length);
      });
      await notes.outcome("outside of a transaction", () => session.stream("select id from items order by id", 7, 1000));
    });
  }

  async function copy(place, notes) {
    const table = `work_${notes.worker}`;
    await using(1, place, async (session) => {
      await session.query(`delete from ${table}`);
      const lines = [...Array(MANY).keys()].map((n) => `${n}\trow ${n} ${"x".repeat(50)}\n`);
      await session.copyIn(`copy ${table} from stdin`, lines);
      notes.note("rows", await session.query(`select count(*), sum(id) from ${table}`));
      notes.note("out", (await session.copyOut(`copy ${table} to stdout`)).length);
      await notes.outcome("bad row", () => session.copyInBadly(`copy ${table} from stdin`, ["30000\tgood\n", "seven\tbad\n", ...lines]));
      notes.note("after it", await session.query(`select count(*) from ${table}`));
      await notes.outcome("error while copying out", () => session.copyOutBadly("copy (select 1 / (50 - id) from items) to stdout"));
      notes.note("after that", await session.query("select $1::int4", [1]));
      await notes.outcome("no such table", () => session.copyIn("copy no_such_table from stdin", ["1\n"]));
      await session.query(`delete from ${table}`);
    });
  }

  async function cancel(place, notes) {
    await using(1, place, async (session) => {
      for (let turn = 0; turn < 2; turn += 1) {
        await notes.outcome(`cancelled, turn ${turn}`, () => session.cancelled("select pg_sleep(30)"));
        notes.note(`after it, turn ${turn}`, await session.query("select $1::int4", [turn]));
      }
      await notes.outcome("in a transaction", () => session.begin(async (tx) => tx.cancelled("select pg_sleep(30)")));
      notes.note("after the transaction", await session.query("select $1::int4", [1]));
    });
  }

  async function notify(place, notes) {
    const channel = `channel_${notes.worker}`;
    await using(2, place, async (listener, sender) => {
      await listener.listen(channel);
      for (let n = 0; n < 3; n += 1) await sender.query(`select pg_notify('${channel}', 'message ${n}')`);
      notes.note("received", await listener.received(3, 5000));
      await sender.begin(async (tx) => tx.query(`notify ${channel}, 'with the commit'`));
      notes.note("committed", await listener.received(1, 5000));
      for (let n = 0; n < 5; n += 1) notes.note(`query ${n} meanwhile`, await listener.query("select $1::int4", [n]));
      await sender.query(`notify ${channel}, 'after queries'`);
      notes.note("after queries", await listener.received(1, 5000));
      await listener.unlisten(channel);
      await sender.query(`notify ${channel}, 'unheard'`);
      notes.note("after unlisten", await listener.received(1, 300));
    });
  }

  async function tls(place, notes) {
    const secure = { ...place, url: place.tlsUrl };
    await using(1, secure, async (session) => {
      notes.note("required", await session.query("select $1::int4", [1]));
    }, { tls: { rejectUnauthorized: false } });
    await using(1, secure, async (session) => {
      notes.note("verified", await session.query("select $1::int4", [1]));
      notes.note("much", (await value(session, "select repeat('x', 3000000)")).length);
      const prepared = session.prepare("secure", "select $1::int4");
      for (let n = 0; n < TURNS; n += 1) notes.note(`prepared ${n}`, await prepared(n));
      await notes.outcome("an error", () => session.query("select 1 / 0"));
      notes.note("afterwards", await session.query("select $1::int4", [2]));
    }, { tls: { ca: place.ca } });
    try {
      const session = await driver.connect(place.tlsUrl, { tls: { ca: place.wrongCa } });
      await session.query("select 1");
      notes.note("another authority", "accepted");
      await session.close();
    } catch {
      notes.note("another authority", "refused");
    }
  }

  async function settings(place, notes) {
    const zone = ZONES[notes.worker];
    await using(1, place, async (session) => {
      const start = await value(session, "show timezone");
      await session.query(`set timezone to '${zone}'`);
      await session.query(`set work_mem to '${11 + notes.worker}MB'`);
      for (let n = 0; n < 6; n += 1) {
        notes.note(`set, turn ${n}`, [await value(session, "show timezone"), await value(session, "show work_mem")]);
      }
      await notes.outcome("set and roll back", () =>
        session.begin(async (tx) => {
          await tx.query("set work_mem to '88MB'");
          await tx.query("select 1 / 0");
        }));
      notes.note("after rolling back", await value(session, "show work_mem"));
      await session.query("reset work_mem");
      await session.query("reset timezone");
      notes.note("reset", [await value(session, "show work_mem"), (await value(session, "show timezone")) === start]);
      await session.query("create temp table mine (a int4)");
      await session.query("insert into mine values ($1::int4)", [notes.worker]);
      for (let n = 0; n < 4; n += 1) notes.note(`temporary table ${n}`, await session.query("select a from mine"));
      await session.query("drop table mine");
      const key = 2000 + notes.worker;
      await session.query(`select pg_advisory_lock(${key})`);
      notes.note("locked", await session.query("select $1::int4", [1]));
      notes.note("advisory lock", await session.query(`select pg_advisory_unlock(${key})`));
      await session.query(`select hide_setting('worker ${notes.worker}')`);
      for (let n = 0; n < 4; n += 1) {
        notes.note(`hidden ${n}`, await session.query("select current_setting('my.hidden', true)"));
      }
    });
  }

  async function pool(place, notes) {
    notes.note("shared", await driver.pooled(place.url, 8, 10));
    await notes.outcome("after a loss", () => driver.pooledAfterLoss(place.url));
  }

  async function reconnect(place, notes) {
    await using(1, place, async (killer) => {
      const session = await driver.connect(place.url, {});
      await notes.outcome("cut in a transaction", () =>
        session.begin(async (tx) => {
          const pid = await value(tx, "select pg_backend_pid()");
          await killer.query(`select pg_terminate_backend(${pid}, 5000)`);
          await sleep(200);
          await tx.query("select 1");
        }));
      await session.close();
    });
    await using(1, place, async (session) => {
      notes.note("a new connection", await session.query("select $1::int4", [1]));
      await notes.outcome("cut by its own query", () =>
        session.query("select pg_terminate_backend(pg_backend_pid()), pg_sleep(5)"));
    });
    await using(1, place, async (session) => {
      notes.note("the last connection", await session.query("select $1::int4", [2]));
    });
  }

  return {
    connect, types, parameters, named, unnamed, batch, pipeline, transactions, errors, cursors, copy, cancel, notify, tls,
    settings, pool, reconnect,
  };
}
