// A process with npm bentocache on a table of a database, told what to do by interop.rs: one JSON
// array a line, [operation, namespace or null, options]. It answers each with a line.

import { createInterface } from 'node:readline'

import { BentoCache, bentostore } from 'bentocache'
import { knexDriver } from 'bentocache/drivers/knex'
import knex from 'knex'

const [client, connection, tableName] = process.argv.slice(2)
const bento = new BentoCache({
  default: 'main',
  ttl: '10m',
  stores: {
    main: bentostore().useL2Layer(
      knexDriver({ connection: knex({ client, connection }), tableName, pruneInterval: false }),
    ),
  },
})

const operations = {
  getOrSet: (cache, { value, ...options }) =>
    cache.getOrSet({ timeout: null, ...options, factory: () => value }),
  pull: (cache, { key }) => cache.pull(key),
}

async function answer(line) {
  const [op, namespace, options] = JSON.parse(line)
  try {
    const cache = namespace ? bento.namespace(namespace) : bento
    const run = operations[op] ?? ((cache, options) => cache[op](options))
    return { result: (await run(cache, options)) ?? null }
  } catch (error) {
    return { error: `${error}: ${error.cause}` }
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(`${JSON.stringify(await answer(line))}\n`)
}
// Whoever started us is gone.
process.exit(0)
