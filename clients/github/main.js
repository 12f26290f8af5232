// The main step: knock, and print what is open.
//
// Before the knock it saves a mark, which is also the end of the grant's reason. If this step is killed before the
// answer, the post step finds the grant by the mark.
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
  const text = input("for");
  if (/^\d+$/.test(text)) throw new Failure(`for: ${text} what? Say ${text}m, ${text}h or ${text}s`);
  return text;
}

/** Read how long to retry while there is no room, in seconds. */
function patience() {
  const match = /^(\d{1,5})([smh])$/.exec(input("wait") || "0s");
  if (!match) throw new Failure(`wait: say how long, like 90s, 5m or 1h; "${input("wait")}" is none of them`);
  return Number(match[1]) * SECONDS[match[2]];
}

/** Write the reason, for the trail, with the mark at its end. It is cut before: the API allows 256 characters. */
function reasonWith(mark) {
  const { GITHUB_REPOSITORY, GITHUB_WORKFLOW, GITHUB_RUN_ID } = process.env;
  const reason = input("reason") || `${GITHUB_REPOSITORY}: ${GITHUB_WORKFLOW}, run ${GITHUB_RUN_ID}`;
  return `${Array.from(reason).slice(0, 200).join("")} ${mark}`;
}

/** Knock, and retry for `waits` seconds while there is no room. Gives the active grant. */
async function open(api, knock, waits) {
  const until = Date.now() + waits * 1000;
  for (let wait = 1000; ; wait = Math.min(wait * 2, 30000)) {
    try {
      return await opened(api, await call(api, "POST", "/knock", knock));
    } catch (error) {
      const full = error instanceof Refused && error.type === "pool-exhausted";
      if (!full || Date.now() >= until || cancelled) throw error;
      say(`there is no room: ${error.message}; trying again`);
      await pause(Math.min(wait, until - Date.now()));
      if (cancelled) throw error;
    }
  }
}

/** Save a grant's id for the post step, and wait until the grant is active. */
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
  const knock = { targets: targets(), duration: duration() };
  const waits = patience();
  if (!knock.targets.length) delete knock.targets;
  if (!knock.duration) delete knock.duration;
  const mark = `[job ${crypto.randomBytes(8).toString("hex")}]`;
  knock.reason = reasonWith(mark);
  tell("GITHUB_STATE", "mark", mark);
  try {
    const grant = await open(api, knock, waits);
    if (cancelled) throw new Failure("cancelled; the post step ends what was opened");
    const names = grant.targets.map((target) => target.name).join(" ");
    say(`open: ${names} from ${grant.source} until ${grant.expires_at}, grant ${grant.id}`);
    for (const name of ["id", "expires_at", "source"]) tell("GITHUB_OUTPUT", name, plain(grant[name]));
  } catch (error) {
    // A refusal opened nothing, so the post step does not have to search for a grant.
    if (error instanceof Refused && error.status < 500) tell("GITHUB_STATE", "refused", "yes");
    if (error instanceof Refused && error.grantId) tell("GITHUB_STATE", "id", error.grantId);
    throw error;
  }
}

// A cancelled step gets SIGINT, SIGTERM 7.5 seconds later, and is killed after 2.5 more: time for an answer to come.
// https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-cancellation
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => (cancelled = true));

main().then(
  () => process.exit(0),
  (error) => {
    command("error", plain(error instanceof Failure ? error.message : error.stack));
    process.exit(1);
  },
);
