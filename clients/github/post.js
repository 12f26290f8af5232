// The post step: revoke the grant of the main step. It always runs, and never fails the job: if a grant cannot be
// revoked, there is a warning, and it stays open until it expires.
"use strict";

const { Failure, Refused, access, call, command, isId, marked, pause, plain, say } = require("./knock.js");

const TRIES = 4;

/** Run an action, and retry it after transient errors. */
async function insist(action) {
  for (let tries = 1; ; tries++) {
    try {
      return await action();
    } catch (error) {
      const passes = !(error instanceof Refused) || error.status === 429 || error.status > 499;
      if (!passes || tries === TRIES) throw error;
      await pause(250 * 2 ** tries);
    }
  }
}

/** Find the grants of main whose answers were lost. A grant is listed a moment after its start. */
async function lost(api, mark, looks) {
  for (let tries = 1; ; tries++) {
    const ids = await insist(() => marked(api, mark));
    if (ids.length || tries === looks) return ids;
    await pause(1000);
  }
}

/** Revoke a grant and give its status; undefined, with a warning, if it cannot be revoked. */
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

function warn(subject, error) {
  const text = plain(error instanceof Failure ? error.message : error.stack);
  command("warning", `${subject} could not be ended, and ends at its own end: ${text}`);
}

/**
 * Revoke the grant whose id main saved, and others with its mark: while there was no room, main knocked several times,
 * and the grant that it saved may have failed before a knock whose answer was lost.
 */
async function main() {
  const { STATE_id: id, STATE_mark: mark, STATE_refused: refused } = process.env;
  if (!mark) return say("nothing was asked for, so nothing is open");
  if (!isId(id) && refused) return say("the knock was refused, so nothing is open");
  const api = access();
  const status = isId(id) ? await end(api, id) : undefined;
  // After a grant that was live until now, or a refusal, main has sent no other knock: one search is enough.
  const ids = await lost(api, mark, status === "revoked" || refused ? 1 : TRIES);
  const lostIds = ids.filter((lostId) => lostId !== id);
  for (const lostId of lostIds) await end(api, lostId);
  if (!isId(id) && !lostIds.length) say("no grant of this job is live");
}

main().catch((error) => warn("the grant of this job, if there is one that was not named,", error));
