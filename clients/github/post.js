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
async function lost(api, mark) {
  for (let tries = 1; ; tries++) {
    const found = await insist(() => marked(api, mark));
    if (found.length || tries === TRIES) return found;
    await pause(1000);
  }
}

async function main() {
  const { STATE_id: id, STATE_mark: mark, STATE_refused: refused } = process.env;
  if (!mark) return say("nothing was asked for, so nothing is open");
  if (!isId(id) && refused) return say("the knock was refused, so nothing is open");
  const api = access();
  const ids = isId(id) ? [id] : await lost(api, mark);
  if (!ids.length) return say("no grant of this job is live");
  for (const one of ids) {
    const grant = await insist(() => call(api, "DELETE", `/grants/${one}`));
    say(`${grant.status}: ${one}`);
  }
}

main().catch((error) => {
  const told = plain(error instanceof Failure ? error.message : error.stack);
  const grant = isId(process.env.STATE_id) ? `grant ${process.env.STATE_id}` : "the grant of this job, if there is one,";
  command("warning", `${grant} could not be ended, and ends at its own end: ${told}`);
});
