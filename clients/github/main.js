// The main step: knock, and say what is open.
//
// Before it asks it notes a mark, which is also the end of the grant's reason. Should this step be killed before the
// answer is there, the post step finds the grant by it.
"use strict";

const crypto = require("node:crypto");
const { Failure, Refused, NoAnswer, access, call, command, input, isId, pause, plain, say, tell } = require("./knock.js");

const SECONDS = { s: 1, m: 60, h: 3600 };
let cancelled = false;

function targets() {
  const names = input("targets").split(/\s+/).filter(Boolean);
  const odd = names.find((name) => name.includes(","));
  if (odd) throw new Failure(`targets are separated by spaces: ${odd.split(",").join(" ")}`);
  return names;
}

function duration() {
  const asked = input("for");
  if (/^\d+$/.test(asked)) throw new Failure(`for: ${asked} what? Say ${asked}m, ${asked}h or ${asked}s`);
  return asked;
}

function patience() {
  const asked = /^(\d{1,5})([smh])$/.exec(input("wait") || "0s");
  if (!asked) throw new Failure(`wait: say how long, like 90s, 5m or 1h; "${input("wait")}" is none of them`);
  return Number(asked[1]) * SECONDS[asked[2]];
}

/** Say why, for the trail. The mark comes last; what is too long before it is cut, as the API takes 256 characters. */
function reasonWith(mark) {
  const { GITHUB_REPOSITORY, GITHUB_WORKFLOW, GITHUB_RUN_ID } = process.env;
  const said = input("reason") || `${GITHUB_REPOSITORY}: ${GITHUB_WORKFLOW}, run ${GITHUB_RUN_ID}`;
  return `${Array.from(said).slice(0, 200).join("")} ${mark}`;
}

/** Knock until it is open, or for as long as there is no room. */
async function open(api, asked, waits) {
  const until = Date.now() + waits * 1000;
  for (let wait = 1000; ; wait = Math.min(wait * 2, 30000)) {
    try {
      return await opened(api, await call(api, "POST", "/knock", asked));
    } catch (error) {
      const full = error instanceof Refused && error.type === "pool-exhausted";
      if (!full || Date.now() >= until || cancelled) throw error;
      say(`there is no room: ${error.message}; trying again`);
      await pause(Math.min(wait, until - Date.now()));
      if (cancelled) throw error;
    }
  }
}

/** Note a grant for the post step, and wait until it is active. */
async function opened(api, grant) {
  if (!isId(grant.id)) throw new NoAnswer("the API answered with a grant that is none of Knock's");
  tell("GITHUB_STATE", "id", grant.id);
  for (let tries = 0; grant.status === "pending" && tries < 60 && !cancelled; tries++) {
    await pause(1000);
    grant = await call(api, "GET", `/grants/${grant.id}`);
  }
  if (grant.status === "active" || cancelled) return grant;
  const last = Array.isArray(grant.events) ? grant.events[grant.events.length - 1] : undefined;
  const why = String((last && last.reason) || "");
  const type = why.startsWith("PoolExhausted:") ? "pool-exhausted" : "";
  throw new Refused(409, { title: `grant ${grant.id} is ${grant.status}`, detail: why, type });
}

async function main() {
  const api = access();
  const asked = { targets: targets(), duration: duration() };
  const waits = patience();
  if (!asked.targets.length) delete asked.targets;
  if (!asked.duration) delete asked.duration;
  const mark = `[job ${crypto.randomBytes(8).toString("hex")}]`;
  asked.reason = reasonWith(mark);
  tell("GITHUB_STATE", "mark", mark);
  try {
    const grant = await open(api, asked, waits);
    if (cancelled) throw new Failure("cancelled; the post step ends what was opened");
    const names = grant.targets.map((target) => target.name).join(" ");
    say(`open: ${names} from ${grant.source} until ${grant.expires_at}, grant ${grant.id}`);
    for (const name of ["id", "expires_at", "source"]) tell("GITHUB_OUTPUT", name, plain(grant[name]));
  } catch (error) {
    // A plain no opened nothing: then there is nothing for the post step to look for.
    if (error instanceof Refused && error.status < 500) tell("GITHUB_STATE", "refused", "yes");
    if (error instanceof Refused && error.grantId) tell("GITHUB_STATE", "id", error.grantId);
    throw error;
  }
}

// A cancelled step has 7.5 seconds from SIGINT to SIGTERM, and 2.5 more: what was asked is waited for meanwhile.
// https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-cancellation
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => (cancelled = true));

main().then(
  () => process.exit(0),
  (error) => {
    command("error", plain(error instanceof Failure ? error.message : error.stack));
    process.exit(1);
  },
);
