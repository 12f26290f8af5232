// Functions of both steps of the action: inputs, calls of the API, and output to the runner.
//
// The action has no dependencies. The key is sent as a header only: it is written to no file, and masked in the log
// before the first call. Text of an answer is never printed unchanged, since the runner takes a line that begins with
// ::, also after blanks, for a command, and a ##[ anywhere.
//
// https://github.com/actions/runner, ActionCommand.cs
// https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands
"use strict";

const fs = require("node:fs");
const crypto = require("node:crypto");

const PATIENCE = 35000; // milliseconds until an answer; the gateway answers within 29 s

/** An error that ends a step; its message is for people. */
class Failure extends Error {}

/** The API refused a call. `status` is that of HTTP, and `type` the last part of the problem's type. */
class Refused extends Failure {
  constructor(status, problem) {
    const text = [problem.title, problem.detail].filter((part) => typeof part === "string" && part).join(": ");
    super(text || (typeof problem.message === "string" ? `the gateway says: ${problem.message}` : `status ${status}`));
    this.status = status;
    this.type = String(problem.type || "").split(":").pop();
    this.grantId = isId(problem.grant_id) ? problem.grant_id : undefined;
  }
}

/** No answer came, or one that is not from the Knock API. The call may have been done or not. */
class NoAnswer extends Failure {}

function isId(text) {
  return typeof text === "string" && /^[A-Za-z0-9_-]{1,80}$/.test(text);
}

/** Make a text safe for the log: printable ASCII, without commands to the runner. */
function plain(text) {
  const ascii = String(text).replace(/[^\x20-\x7e]/g, "?");
  return ascii.replace(/##\[/g, "# #[").replace(/^\s*::/, ": :").slice(0, 2000);
}

function say(text) {
  process.stdout.write(`${plain(text)}\n`);
}

/** Print a workflow command. Its text is escaped as the runner expects it. */
function command(name, text) {
  const escaped = String(text).replace(/%/g, "%25").replace(/\r/g, "%0D").replace(/\n/g, "%0A");
  process.stdout.write(`::${name}::${escaped}\n`);
}

function input(name) {
  return (process.env[`INPUT_${name.toUpperCase()}`] || "").trim();
}

/** Add a value to a file that the runner reads, like GITHUB_OUTPUT. Throws Failure. */
function tell(variable, name, value) {
  const file = process.env[variable];
  if (!file) throw new Failure(`${variable} is not set: this has to be run by a GitHub runner`);
  const end = crypto.randomBytes(16).toString("hex");
  fs.appendFileSync(file, `${name}<<${end}\n${value}\n${end}\n`);
}

/** Read the URL and the key from the inputs, and mask the key. Throws Failure. */
function access() {
  const key = input("key");
  if (!key) {
    throw new Failure(
      "the input key is empty: is the secret that it is given, like KNOCK_API_KEY, set for this repository and " +
        "environment? A workflow that runs for a fork is given no secrets",
    );
  }
  command("add-mask", key);
  if (!/^[!-~]+$/.test(key)) throw new Failure("the input key holds a character that no API key has");
  const url = input("url").replace(/\/$/, "").replace(/\/knock$/, "");
  if (!url) throw new Failure("the input url is empty: is the variable that it is given, like KNOCK_URL, set?");
  const here = /^http:\/\/(127\.0\.0\.1|localhost|\[::1\])[:/]/.test(url);
  if (!/^https:\/\/[^@?#\s"\\]+$/.test(url) && !(here && /^[^@?#\s"\\]+$/.test(url))) {
    throw new Failure("the input url must be https://HOST/STAGE: anything else would show the key to the network");
  }
  return { url, key };
}

/** Call the API and give its answer. Throws Refused, NoAnswer. Redirects are not followed: the key is for one host. */
async function call({ url, key }, method, path, body) {
  let status, text;
  try {
    const response = await fetch(url + path, {
      method,
      redirect: "manual",
      signal: AbortSignal.timeout(PATIENCE),
      headers: { "x-api-key": key, accept: "application/json", "content-type": "application/json" },
      body: body && JSON.stringify(body),
    });
    status = response.status;
    text = await response.text();
  } catch (error) {
    const cause = error.cause || error;
    throw new NoAnswer(`the API at ${url} does not answer (${cause.code || cause.name})`);
  }
  let answer;
  try {
    answer = JSON.parse(text);
  } catch {
    answer = undefined;
  }
  if (status < 200 || (status > 299 && status < 400) || typeof answer !== "object" || answer === null) {
    throw new NoAnswer(`${url} answered ${status} with something that is not from the Knock API`);
  }
  if (status > 299) throw new Refused(status, answer);
  return answer;
}

function pause(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/** Give the ids of live grants whose reason ends with a mark: the key's own, and for an operator everyone's. */
async function marked(api, mark) {
  const ids = [];
  let cursor = "";
  for (let page = 0; page < 100; page++) {
    const answer = await call(api, "GET", `/grants?limit=100${cursor && `&cursor=${encodeURIComponent(cursor)}`}`);
    for (const grant of Array.isArray(answer.grants) ? answer.grants : []) {
      if (grant && isId(grant.id) && String(grant.reason).endsWith(mark)) ids.push(grant.id);
    }
    if (typeof answer.cursor !== "string" || !answer.cursor) return ids;
    cursor = answer.cursor;
  }
  return ids;
}

module.exports = { Failure, NoAnswer, Refused, access, call, command, input, isId, marked, pause, plain, say, tell };
