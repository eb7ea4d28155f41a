import { randomUUID } from 'node:crypto'

import { Sandbox } from 'e2b'
import { expect, test } from 'vitest'

import { create, get, hostOf, until } from './support'

test('a new sandbox runs until it is killed', async () => {
  const sandbox = await create()
  expect(await sandbox.isRunning()).toBe(true)
  expect(await Sandbox.kill(sandbox.sandboxId)).toBe(true)
  expect(await sandbox.isRunning()).toBe(false)
  expect(await Sandbox.kill(sandbox.sandboxId)).toBe(false)
  await expect(Sandbox.connect(sandbox.sandboxId)).rejects.toThrow()
})

test('killing what was never there is false', async () => {
  expect(await Sandbox.kill('non-existing')).toBe(false)
})

// Rules: SDK-1, TRAP-1
test('connect reaches the same sandbox', async () => {
  const sandbox = await create()
  await sandbox.files.write('note.txt', 'from the first')
  const other = await Sandbox.connect(sandbox.sandboxId)
  expect(await other.files.read('note.txt')).toBe('from the first')
})

test('info says what was asked for', async () => {
  const metadata = { purpose: 'info', ünï: 'çødé & = +' }
  const sandbox = await create({ metadata, timeoutMs: 60_000 })
  const info = await sandbox.getInfo()
  expect(info.sandboxId).toBe(sandbox.sandboxId)
  expect(info.metadata).toEqual(metadata)
  expect(info.state).toBe('running')
  const seconds = (info.endAt.getTime() - info.startedAt.getTime()) / 1000
  expect(Math.abs(seconds - 60)).toBeLessThan(5)
})

test('timeouts can be shortened', async () => {
  const sandbox = await create()
  await sandbox.setTimeout(1000)
  await until('the sandbox to expire', async () => !(await sandbox.isRunning()))
})

test('lists are filtered and paged, newest first', async () => {
  const group = randomUUID()
  const made: string[] = []
  for (let i = 0; i < 3; i++) made.push((await create({ metadata: { group } })).sandboxId)
  const pages = Sandbox.list({ query: { metadata: { group } }, limit: 1 })
  const seen: string[] = []
  while (pages.hasNext) {
    const items = await pages.nextItems()
    expect(items).toHaveLength(1)
    seen.push(items[0].sandboxId)
  }
  expect(seen).toEqual(made.reverse())
})

test('metrics appear', async () => {
  const sandbox = await create()
  const metrics = await until('the first metrics', async () => {
    const found = await sandbox.getMetrics()
    return found.length ? found : undefined
  }, 40_000)
  expect(metrics![0].memTotal).toBeGreaterThan(0)
  expect(metrics![0].cpuCount).toBeGreaterThan(0)
})

// Rules: PROXY-10, PROXY-18
test('a server is reached by name, and a closed port is 502', async () => {
  const sandbox = await create()
  await sandbox.files.write('index.html', 'served')
  await sandbox.commands.run('exec python3 -m http.server 8000 --bind 127.0.0.1', { background: true })
  await sandbox.commands.run("until ss -Htln | grep -q ':8000 '; do sleep 0.05; done")
  expect(await get(hostOf(sandbox, 8000), '/index.html')).toEqual({ status: 200, body: 'served' })
  const closed = await get(hostOf(sandbox, 8888))
  expect(closed.status).toBe(502)
  expect(JSON.parse(closed.body)).toEqual({
    sandboxId: sandbox.sandboxId,
    message: 'The sandbox is running but port is not open',
    port: 8888,
    code: 502,
  })
})

test('many at once do not mix', async () => {
  const numbers = [...Array(10).keys()]
  const outputs = await Promise.all(
    numbers.map(async (number) => {
      const sandbox = await create()
      await sandbox.files.write('number', String(number))
      return (await sandbox.commands.run('cat number')).stdout
    }),
  )
  expect(outputs).toEqual(numbers.map(String))
})
