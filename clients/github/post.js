// The post step: end what main opened. It always runs, and does not fail the job: what cannot be ended is told by a
// warning, and ends at its own end.
"use strict";

const { Failure, Refused, access, call, command, isId, marked, pause, plain, say } = require("./knock.js");

const TRIES = 4;

async function insist(what) {
  for (let tries = 1; ; tries++) {
    try {
      return await what();
    } catch (error) {
      const passes = !(error instanceof Refused) || error.status === 429 || error.status > 499;
      if (!passes || tries === TRIES) throw error;
      await pause(250 * 2 ** tries);
    }
  }
}

/** Find what main asked for without hearing its answer. A grant is listed a moment after it has begun. */
async function lost(api, mark, looks) {
  for (let tries = 1; ; tries++) {
    const found = await insist(() => marked(api, mark));
    if (found.length || tries === looks) return found;
    await pause(1000);
  }
}

/** End a grant and give its status. One that cannot be ended is told, and keeps no other open. */
async function end(api, id) {
  try {
    const { status } = await insist(() => call(api, "DELETE", `/grants/${id}`));
    say(`${status}: ${id}`);
    return status;
  } catch (error) {
    warn(`grant ${id}`, error);
    return undefined;
  }
}

function warn(what, error) {
  const told = plain(error instanceof Failure ? error.message : error.stack);
  command("warning", `${what} could not be ended, and ends at its own end: ${told}`);
}

/**
 * End the grant that main heard of, and what else carries the mark: while there was no room main knocked again, and
 * the grant it heard of may be one that failed before a knock whose answer was lost.
 */
async function main() {
  const { STATE_id: id, STATE_mark: mark, STATE_refused: refused } = process.env;
  if (!mark) return say("nothing was asked for, so nothing is open");
  if (!isId(id) && refused) return say("the knock was refused, so nothing is open");
  const api = access();
  const status = isId(id) ? await end(api, id) : undefined;
  // A grant that was live till now was the last that main asked for, and a refusal the last answer: none is on its way.
  const found = await lost(api, mark, status === "revoked" || refused ? 1 : TRIES);
  const others = found.filter((one) => one !== id);
  for (const one of others) await end(api, one);
  if (!isId(id) && !others.length) say("no grant of this job is live");
}

main().catch((error) => warn("the grant of this job, if there is one that was not named,", error));
