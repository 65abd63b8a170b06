// Plays scenarios and prints what was observed; the environment says which, as in play.py.

import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

export const load = createRequire(path.join(process.env.DRIVERS_NODE_MODULES, "anything.js"));

export class NotApplicable extends Error {}

export function sleep(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

export class Notes {
  constructor(worker) {
    this.worker = worker;
    this.steps = [];
    this.backends = null;
  }

  note(step, value) {
    this.steps.push([step, typeof value === "string" ? value : JSON.stringify(value) ?? "undefined"]);
  }

  // Notes a value, or the SQLSTATE of the error in its place.
  async outcome(step, action) {
    let value;
    try {
      value = await action();
    } catch (error) {
      if (error instanceof NotApplicable) value = `n/a: ${error.message}`;
      else value = `failed ${error.code ?? error.message}`;
    }
    this.note(step, value ?? "nothing");
  }
}

function say(answer) {
  fs.writeSync(1, JSON.stringify(answer) + "\n");
}

async function work(scenario, name, worker, place) {
  const notes = new Notes(worker);
  const answer = { scenario: name, worker, steps: notes.steps };
  try {
    await scenario(place, notes);
  } catch (error) {
    if (error instanceof NotApplicable) answer.na = error.message;
    else notes.note("ended by", `${error.code ?? ""} ${error.stack ?? error}`.slice(0, 600));
  }
  say({ ...answer, backends: notes.backends });
}

const ALONE = new Set(["pool", "reconnect"]);

export async function play(scenarios) {
  const { DRIVERS_URL, DRIVERS_TLS_URL, DRIVERS_CA, DRIVERS_WRONG_CA, DRIVERS_SCENARIOS, DRIVERS_WORKERS } = process.env;
  const place = {
    url: DRIVERS_URL,
    tlsUrl: DRIVERS_TLS_URL,
    ca: fs.readFileSync(DRIVERS_CA, "utf8"),
    wrongCa: fs.readFileSync(DRIVERS_WRONG_CA, "utf8"),
    database: new URL(DRIVERS_URL).pathname.slice(1),
    changed({ password, database }) {
      const url = new URL(DRIVERS_URL);
      if (password !== undefined) url.password = password;
      if (database !== undefined) url.pathname = `/${database}`;
      return url.href;
    },
  };
  for (const name of DRIVERS_SCENARIOS.split(",")) {
    const workers = ALONE.has(name) ? 1 : Number(DRIVERS_WORKERS);
    say({ begin: name, at: Date.now() / 1000 });
    await Promise.all([...Array(workers).keys()].map((worker) => work(scenarios[name], name, worker, place)));
    say({ end: name });
  }
  process.exit(0);
}
