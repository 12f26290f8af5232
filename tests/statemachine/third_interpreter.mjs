// Runs a definition on aws-local-stepfunctions and prints the states it entered, as JSON.
// Standard input: {definition, input, outcomes: {state: [error name or null, …]}}; the last outcome repeats.
import { StateMachine } from 'aws-local-stepfunctions';

const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const { definition, input, outcomes } = JSON.parse(Buffer.concat(chunks).toString());

const handlers = {};
const waits = {};
const retries = {};
for (const [name, state] of Object.entries(definition.States)) {
  if (state.Type === 'Wait') waits[name] = 0;
  if (state.Type !== 'Task') continue;
  // A retrier's pauses are an array, one for each retrier of the state.
  retries[name] = (state.Retry ?? []).map(() => 0);
  const left = [...(outcomes[name] ?? [null])];
  handlers[name] = async () => {
    const outcome = left.length > 1 ? left.shift() : left[0];
    if (outcome !== null) {
      const error = new Error('injected');
      error.name = outcome;
      throw error;
    }
    return [];
  };
}

const machine = new StateMachine(definition, { validationOptions: { noValidate: true } });
const execution = machine.run(input, {
  overrides: {
    taskResourceLocalHandlers: handlers,
    waitTimeOverrides: waits,
    retryIntervalOverrides: retries,
  },
});
execution.result.catch(() => {});
const entered = [];
let status = '';
for await (const event of execution.eventLogs) {
  if (/StateEntered$/.test(event.type)) entered.push(event.state.name);
  if (/^Execution(Succeeded|Failed|Aborted|Timeout)$/.test(event.type)) status = event.type;
}
console.log(JSON.stringify({ entered, status }));
