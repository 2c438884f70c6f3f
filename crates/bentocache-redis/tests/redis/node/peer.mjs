// A process with npm bentocache, told what to do by interop.rs: one JSON object a line.
// In:  { id, op, args: { ns: [namespace, ...], ...options of the operation } }
// Out: { id, result } or { id, error }
// A value is sent as [value], none as [], so that null is not taken for none.

import { createInterface } from 'node:readline'

import { BentoCache, bentostore } from 'bentocache'
import { memoryDriver } from 'bentocache/drivers/memory'
import { redisBusDriver, redisDriver } from 'bentocache/drivers/redis'
import { Redis } from 'ioredis'

const connection = new Redis(process.argv[2])
const bento = new BentoCache({
  default: 'main',
  ttl: '10m',
  stores: {
    main: bentostore()
      .useL1Layer(memoryDriver({ maxSize: '10mb', maxItems: 10_000 }))
      .useL2Layer(redisDriver({ connection }))
      .useBus(redisBusDriver({ connection })),
  },
})
const store = bento.use('main')

// Keys about which a message came while they were read. Node has no fence: what it read goes into
// its memory all the same, and may stay there although it is out of date.
const reading = new Set()
const raced = new Set()
bento.on('bus:message:received', ({ message: { keys, type } }) => {
  const all = type === 'clear' || keys.some((key) => key.startsWith('___bc:t:'))
  for (const { key, full } of reading) if (all || keys.includes(key)) raced.add(full)
})

const option = (value) => (value === undefined ? [] : [value])

const operations = {
  get: async (cache, options) => option(await cache.get(options)),
  pull: async (cache, { key }) => option(await cache.pull(key)),
  // With `fails`, the factory does.
  getOrSet: async (cache, { value, fails, ...options }) => {
    let ran = false
    const factory = () => {
      ran = true
      if (fails) throw new Error('the factory failed')
      return value
    }
    // No soft timeout: the result of the factory is waited for.
    const got = await cache.getOrSet({ timeout: null, ...options, factory })
    return { value: option(got), ran }
  },
}
const direct = ['set', 'setForever', 'has', 'missing', 'delete', 'deleteMany', 'deleteByTag', 'expire', 'clear']
const reads = ['get', 'has', 'missing', 'getOrSet', 'pull']
for (const name of direct) operations[name] = (cache, options) => cache[name](options)

// Says which, and forgets them.
operations.raced = () => {
  const keys = [...raced]
  raced.clear()
  return keys
}

async function answer({ id, op, args: { ns = [], ...options } }) {
  const read = { key: options.key, full: [...ns, options.key].join(':') }
  try {
    if (reads.includes(op)) reading.add(read)
    const cache = ns.reduce((parent, name) => parent.namespace(name), store)
    return { id, result: (await operations[op](cache, options)) ?? null }
  } catch (error) {
    return { id, error: String(error) }
  } finally {
    reading.delete(read)
  }
}

// Operations run side by side, as in a server.
for await (const line of createInterface({ input: process.stdin })) {
  answer(JSON.parse(line)).then((reply) => process.stdout.write(`${JSON.stringify(reply)}\n`))
}
// Whoever started us is gone.
process.exit(0)
