// Starts the npm package stepfunctions-local for local/stepfunctions_local.py, which says why this is needed:
//   node stepfunctions_local.js '{"port": 0, "region": …, "lambdaEndpoint": …, "lambdaRegion": …}'
// Prints the port it listens on. Ends when its standard input does.
'use strict';

const net = require('net');

// It would listen on every interface.
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function listenOnLoopback(port, ready) {
  return listen.call(this, port, '127.0.0.1', () => {
    console.log(this.address().port);
    ready();
  });
};

process.stdin.resume().on('end', () => process.exit());

// It gives Lambda tasks their whole input, whatever their Parameters say.
// https://docs.aws.amazon.com/step-functions/latest/dg/input-output-inputpath-params.html
const engine = require.resolve('stepfunctions-local');
const jsonpath = require(require.resolve('jsonpath', { paths: [engine] }));
const TaskLambda = require('stepfunctions-local/src/lib/states/task-lambda');

function fill(template, input) {
  if (Array.isArray(template)) return template.map(item => fill(item, input));
  if (typeof template !== 'object' || template === null) return template;
  return Object.fromEntries(Object.entries(template).map(([name, value]) => (
    name.endsWith('.$') ? [name.slice(0, -2), jsonpath.value(input, value)] : [name, fill(value, input)]
  )));
}

const invokeLambda = TaskLambda.prototype.invokeLambda;
TaskLambda.prototype.invokeLambda = function invokeWithParameters() {
  if (!this.state.Parameters) return invokeLambda.call(this);
  const payload = fill(this.state.Parameters, this.input);
  return invokeLambda.call(Object.create(this, { input: { value: payload } }));
};

require(engine).start(JSON.parse(process.argv[2]));
