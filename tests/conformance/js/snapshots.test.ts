// Snapshots and forks: what is copied, and that the copies are independent.

import { randomUUID } from 'node:crypto'

import { NotFoundError, Sandbox, SandboxError } from 'e2b'
import { describe, expect, onTestFinished, test } from 'vitest'

import { before, count, create } from './support'

// By then snapshots have names and a sandbox has forks.
const named = !before('2.51.0')

/** Takes a snapshot that is deleted after the test. */
async function snap(sandbox: Sandbox, options: object = {}) {
  const snapshot = await sandbox.createSnapshot(options)
  // The first to be registered runs last: sandboxes of it have ended by then.
  onTestFinished(async () => void (await Sandbox.deleteSnapshot(snapshot.snapshotId)))
  return snapshot
}

async function createFrom(template: string, options: object = {}): Promise<Sandbox> {
  const sandbox = await Sandbox.create(template, { timeoutMs: 120_000, ...options })
  onTestFinished(async () => void (await sandbox.kill()))
  return sandbox
}

type ListOptions = Parameters<typeof Sandbox.listSnapshots>[0]

async function ids(options: object): Promise<string[]> {
  const pages = Sandbox.listSnapshots(options as ListOptions)
  const found: string[] = []
  while (pages.hasNext) found.push(...(await pages.nextItems()).map((entry) => entry.snapshotId))
  return found
}

test('a sandbox is made of it, independent of its source', async () => {
  const source = await create({ metadata: { whose: 'source' }, envs: { GREETING: 'source' } })
  await source.files.write('file', 'then')
  const snapshot = await snap(source)
  expect(snapshot.snapshotId).toMatch(/^[a-z0-9]{20}:default$/)
  await source.files.write('file', 'now')
  const one = await createFrom(snapshot.snapshotId, { metadata: { whose: 'one' } })
  await source.kill()
  const two = await createFrom(snapshot.snapshotId, { envs: { GREETING: 'two' } })
  await one.files.write('own', 'of one')
  expect(await one.files.read('file')).toBe('then')
  expect(await two.files.read('file')).toBe('then')
  expect(await two.files.exists('own')).toBe(false)
  expect((await one.getInfo()).metadata).toEqual({ whose: 'one' })
  expect((await two.commands.run('echo $GREETING')).stdout).toBe('two\n')
  expect(`${(await one.getInfo()).templateId}:default`).toBe(snapshot.snapshotId)
  expect(await ids({ sandboxId: source.sandboxId })).toEqual([snapshot.snapshotId])
})

test('the source runs on', async () => {
  const source = await create()
  const counter = await count(source)
  const info = await source.getInfo()
  await snap(source)
  await Sandbox.createSnapshot(source.sandboxId).then(({ snapshotId }) =>
    onTestFinished(async () => void (await Sandbox.deleteSnapshot(snapshotId))),
  )
  await counter.wentOn()
  expect(await source.getInfo()).toEqual(info)
})

test('lists page newest first', async () => {
  const source = await create()
  const made: string[] = []
  for (let i = 0; i < 3; i++) made.push((await snap(source)).snapshotId)
  expect(await ids({ sandboxId: source.sandboxId, limit: 1 })).toEqual(made.toReversed())
  const pages = source.listSnapshots({ limit: 3 })
  expect((await pages.nextItems()).map((entry) => entry.snapshotId)).toEqual(made.toReversed())
  expect(pages.hasNext).toBe(false)
})

test('it is deleted once, and not while it is in use', async () => {
  const source = await create()
  const { snapshotId } = await source.createSnapshot()
  const made = await createFrom(snapshotId)
  await expect(Sandbox.deleteSnapshot(snapshotId)).rejects.toThrow(/400/)
  await made.pause()
  await expect(Sandbox.deleteSnapshot(snapshotId)).rejects.toThrow(/400/)
  await made.kill()
  expect(await Sandbox.deleteSnapshot(snapshotId)).toBe(true)
  expect(await Sandbox.deleteSnapshot(snapshotId)).toBe(false)
  expect(await source.isRunning()).toBe(true)
})

test('what does not run has none taken', async () => {
  const source = await create()
  await source.pause()
  await expect(source.createSnapshot()).rejects.toThrow(NotFoundError)
  await source.kill()
  await expect(source.createSnapshot()).rejects.toThrow(NotFoundError)
})

test.skipIf(!named)('names and tags', async () => {
  const source = await create()
  const name = `conformance-js-${randomUUID().slice(0, 12)}`
  const versions: string[] = []
  for (const tag of ['v1', 'v2']) {
    await source.files.write('version', tag)
    const { snapshotId, names } = await snap(source, { name: `${name}:${tag}` })
    expect(snapshotId).toMatch(new RegExp(`^[a-z0-9-]+/${name}:${tag}$`))
    expect(names.join()).toContain(name)
    versions.push(snapshotId)
  }
  for (const [i, tag] of ['v1', 'v2'].entries()) {
    expect(await (await createFrom(versions[i])).files.read('version')).toBe(tag)
  }
  expect((await ids({ name })).toSorted()).toEqual(versions)
  expect(await ids({ name: versions[0] })).toEqual([versions[0]])
  expect(await ids({ name: `${name}-other` })).toEqual([])
  await expect(source.createSnapshot({ name: 'No Name' } as object)).rejects.toThrow(/400/)
})

describe.skipIf(!named)('forks', () => {
  type Forks = { fork(options?: object): Promise<Array<Sandbox | Error>> }

  async function fork(source: Sandbox, options: object = {}): Promise<Sandbox[]> {
    const forks = await (source as unknown as Forks).fork({ timeoutMs: 60_000, ...options })
    return forks.map((fork) => {
      if (fork instanceof Error) throw fork
      onTestFinished(async () => void (await fork.kill()))
      return fork
    })
  }

  test('are independent', async () => {
    const source = await create({ metadata: { kind: 'forked' }, envs: { GREETING: 'hello' } })
    const counter = await count(source)
    await source.files.write('file', 'shared')
    const info = await source.getInfo()
    const forks = await fork(source, { count: 3 })
    expect(new Set([source, ...forks].map((each) => each.sandboxId)).size).toBe(4)
    for (const each of forks) {
      expect(await each.files.read('file')).toBe('shared')
      expect((await each.commands.run('echo $GREETING $E2B_SANDBOX_ID')).stdout).toBe(
        `hello ${each.sandboxId}\n`,
      )
      expect((await each.getInfo()).metadata).toEqual({ kind: 'forked' })
      await each.files.write('file', each.sandboxId)
    }
    for (const each of forks) expect(await each.files.read('file')).toBe(each.sandboxId)
    expect(await source.files.read('file')).toBe('shared')
    expect(await source.getInfo()).toEqual(info)
    await counter.wentOn()
    await source.kill()
    expect(await forks[0].isRunning()).toBe(true)
  })

  test('need a running source', async () => {
    const source = await create()
    await source.pause()
    await expect(fork(source)).rejects.toThrow(SandboxError)
    await source.kill()
    await expect(fork(source)).rejects.toThrow(NotFoundError)
  })
})
