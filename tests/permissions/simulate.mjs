// Judge requests against IAM policies: JSON in, JSON out, all of them in one process.
//
// In:  {"policies": {name: [document, ...]}, "resource_policies": {arn: document},
//       "requests": [{"by", "action", "resource", "account", "context"}]}
//      `by` is the name of a set of policies, or a service principal such as events.amazonaws.com.
// Out: [{"result": "Allowed" | "ImplicitlyDenied" | ..., "allowed_by": [Sid, ...]}], in the requests' order.
// A request that the simulator finds malformed (an action that does not exist, a resource of another kind) is
// {"result": "error", "why"}.
import { readFileSync } from 'node:fs'
import { runSimulation } from '@cloud-copilot/iam-simulate'

const { policies, resource_policies: resourcePolicies = {}, requests } = JSON.parse(readFileSync(0, 'utf8'))
const everything = { Version: '2012-10-17', Statement: [{ Effect: 'Allow', Action: '*', Resource: '*' }] }

async function judge({ by, action, resource, account, context }) {
  const service = by.endsWith('.amazonaws.com')
  const owner = resource.split(':')[4]
  const answer = await runSimulation(
    {
      identityPolicies: service ? [] : policies[by].map((policy, n) => ({ name: `${by}${n}`, policy })),
      serviceControlPolicies: service
        ? []
        : [{ orgIdentifier: 'all', policies: [{ name: 'all', policy: everything }] }],
      resourceControlPolicies: [],
      resourcePolicy: resourcePolicies[resource],
      request: {
        principal: service ? by : `arn:aws:iam::${account}:role/${by}`,
        action,
        resource: { resource, accountId: owner || account },
        contextVariables: context,
      },
    },
    {},
  )
  if (answer.resultType === 'error') return { result: 'error', why: JSON.stringify(answer.errors) }
  const analyses = (answer.results ?? [answer.result]).map((one) => one.analysis)
  const allowing = analyses.flatMap((one) => [
    ...(one?.identityAnalysis?.allowStatements ?? []),
    ...(one?.resourceAnalysis?.allowStatements ?? []),
  ])
  return { result: answer.overallResult, allowed_by: allowing.map((one) => one.explain.identifier) }
}

const answers = []
for (const request of requests) answers.push(await judge(request))
process.stdout.write(JSON.stringify(answers))
