// Pausing, and connecting to what is paused.

import { randomUUID } from 'node:crypto'

import { NotFoundError, Sandbox, SandboxError, TimeoutError } from 'e2b'
import { describe, expect, onTestFinished, test } from 'vitest'

import { before, count, create, get, hostOf, listed, until } from './support'

// By then a pause may keep the disk alone, a connect may say how, and the beta of create is gone.
const stable = !before('2.51.0')

/** Asserts that every view of it says so. */
async function expectPaused(sandbox: Sandbox) {
  expect(await sandbox.isRunning()).toBe(false)
  expect((await sandbox.getInfo()).state).toBe('paused')
  expect(await listed({ state: ['paused'] })).toContain(sandbox.sandboxId)
  expect(await listed({ state: ['running'] })).not.toContain(sandbox.sandboxId)
}

const isPaused = async (sandbox: Sandbox) => (await sandbox.getInfo()).state === 'paused'

test('a paused sandbox goes on when connected to', async () => {
  const sandbox = await create({ metadata: { kind: 'paused' }, envs: { GREETING: 'hello' } })
  const counter = await count(sandbox)
  expect(await sandbox.pause()).toBe(true)
  await expectPaused(sandbox)
  const other = await Sandbox.connect(sandbox.sandboxId)
  expect(other.sandboxId).toBe(sandbox.sandboxId)
  expect(await sandbox.isRunning()).toBe(true)
  await counter.wentOn()
  expect((await other.commands.run('echo $GREETING')).stdout).toBe('hello\n')
  expect((await other.getInfo()).metadata).toEqual({ kind: 'paused' })
})

test('again and again nothing is lost', async () => {
  const sandbox = await create()
  const counter = await count(sandbox)
  for (let round = 0; round < 20; round++) {
    await sandbox.files.write(`files/${round}`, `content ${round}`)
    expect(await sandbox.pause()).toBe(true)
    await sandbox.connect()
    await counter.wentOn()
  }
  for (let round = 0; round < 20; round++) {
    expect(await sandbox.files.read(`files/${round}`)).toBe(`content ${round}`)
  }
})

test('pausing twice is false', async () => {
  const sandbox = await create()
  expect(await sandbox.pause()).toBe(true)
  expect(await sandbox.pause()).toBe(false)
  expect(await Sandbox.pause(sandbox.sandboxId)).toBe(false)
  expect(await sandbox.betaPause()).toBe(false)
})

test('the beta pauses too', async () => {
  const sandbox = await create()
  expect(await Sandbox.betaPause(sandbox.sandboxId)).toBe(true)
  await expectPaused(sandbox)
})

test('pausing many times at once is pausing once', async () => {
  const sandbox = await create()
  const counter = await count(sandbox)
  const outcomes = await Promise.all([...Array(8)].map(() => sandbox.pause()))
  expect(outcomes).toContain(true)
  expect(await sandbox.pause()).toBe(false)
  await Promise.all([...Array(8)].map(() => sandbox.connect()))
  await counter.wentOn()
})

test('what is not there is not found', async () => {
  const sandbox = await create()
  await sandbox.pause()
  expect(await Sandbox.kill(sandbox.sandboxId)).toBe(true)
  for (const call of [
    () => sandbox.pause(),
    () => Sandbox.pause('i00000000000000000000'),
    () => sandbox.connect(),
    () => sandbox.getInfo(),
    () => sandbox.setTimeout(1000),
  ]) {
    await expect(call()).rejects.toThrow(NotFoundError)
  }
  expect(await Sandbox.kill(sandbox.sandboxId)).toBe(false)
})

test('connect never shortens', async () => {
  const sandbox = await create({ timeoutMs: 100_000 })
  const { endAt } = await sandbox.getInfo()
  await sandbox.connect({ timeoutMs: 10_000 })
  expect((await sandbox.getInfo()).endAt).toEqual(endAt)
  await sandbox.pause()
  await sandbox.connect({ timeoutMs: 50_000 })
  const info = await sandbox.getInfo()
  const seconds = (info.endAt.getTime() - info.startedAt.getTime()) / 1000
  expect(Math.abs(seconds - 50)).toBeLessThan(5)
})

test('it is paused when its time is up, and never out of sight', async () => {
  const group = randomUUID()
  const lifecycle = { onTimeout: 'pause' }
  const sandbox = await create({ timeoutMs: 3000, lifecycle, metadata: { group } })
  await until('the sandbox to be paused', async () => {
    expect(await listed({ metadata: { group } })).toEqual([sandbox.sandboxId])
    return isPaused(sandbox)
  })
  await expectPaused(sandbox)
  await sandbox.connect()
  expect(await sandbox.isRunning()).toBe(true)
})

test.skipIf(stable)('the beta of that', async () => {
  type Beta = { betaCreate(options: object): Promise<Sandbox> }
  const options = { autoPause: true, timeoutMs: 300_000 }
  const sandbox = await (Sandbox as unknown as Beta).betaCreate(options)
  onTestFinished(async () => void (await sandbox.kill()))
  await sandbox.setTimeout(0)
  await until('the sandbox to be paused', () => isPaused(sandbox))
  await sandbox.connect()
  expect((await sandbox.commands.run('echo again')).stdout).toBe('again\n')
})

test('a timeout of zero kills what is not to be paused', async () => {
  const sandbox = await create()
  await sandbox.setTimeout(0)
  await until('the sandbox to end', async () => !(await listed({})).includes(sandbox.sandboxId))
  await expect(sandbox.getInfo()).rejects.toThrow(NotFoundError)
})

test.skipIf(!stable).each([
  [undefined, { onTimeout: 'kill', autoResume: false }],
  [{ onTimeout: 'kill' }, { onTimeout: 'kill', autoResume: false }],
  [{ onTimeout: 'pause' }, { onTimeout: 'pause', autoResume: false }],
  [{ onTimeout: 'pause', autoResume: true }, { onTimeout: 'pause', autoResume: true }],
  [
    { onTimeout: { action: 'pause', keepMemory: false } },
    { onTimeout: 'pause', autoResume: false },
  ],
])('info says what will become of it: %o', async (lifecycle, shown) => {
  const sandbox = await create({ lifecycle })
  expect((await sandbox.getInfo()).lifecycle).toEqual(shown)
})

test.skipIf(!stable)('without its memory it boots anew', async () => {
  const sandbox = await create()
  await count(sandbox)
  await sandbox.files.write('file', 'kept')
  const boot = async () => (await sandbox.commands.run('cat /proc/sys/kernel/random/boot_id')).stdout
  const first = await boot()
  expect(await sandbox.pause({ keepMemory: false } as object)).toBe(true)
  await sandbox.connect()
  expect(await sandbox.files.read('file')).toBe('kept')
  expect(await sandbox.commands.list()).toEqual([])
  expect(await boot()).not.toBe(first)
})

test.skipIf(!stable)('to leave memory out on connect is refused', async () => {
  const sandbox = await create()
  await sandbox.pause()
  await expect(sandbox.connect({ onResume: 'reboot' } as object)).rejects.toThrow(SandboxError)
  expect(await isPaused(sandbox)).toBe(true)
})

test('a stream is cut off by a pause, and its command goes on', async () => {
  const sandbox = await create()
  let seen = 0
  const onStdout = () => void seen++
  const command = 'while sleep 0.01; do echo x; done'
  const handle = await sandbox.commands.run(command, { background: true, timeoutMs: 0, onStdout })
  const outcome = handle.wait().then(
    () => expect.fail('it ended as if nothing had happened'),
    (error: unknown) => error,
  )
  await until('output', async () => seen > 0)
  await sandbox.pause()
  // Before, the SDK passed on whatever its HTTP library said when an answer broke off.
  expect(await outcome).toBeInstanceOf(before('2.30.1') ? Error : TimeoutError)
  await sandbox.connect()
  expect((await sandbox.commands.list()).map((process) => process.pid)).toContain(handle.pid)
})

test('an upload that a pause cuts off says so', async () => {
  const sandbox = await create()
  await sandbox.files.write('small', 'whole')
  const size = 256 << 20
  const outcome = sandbox.files.write('large', new ArrayBuffer(size)).then(
    () => undefined,
    (error: unknown) => error,
  )
  await until('the upload to begin', () => sandbox.files.exists('large'))
  await sandbox.pause()
  const error = await outcome
  await sandbox.connect()
  if (error === undefined) {
    expect((await sandbox.commands.run('stat -c %s large')).stdout).toBe(`${size}\n`)
  } else {
    expect(error).toBeInstanceOf(Error)
  }
  expect(await sandbox.files.read('small')).toBe('whole')
})

describe('traffic', () => {
  const waking = { lifecycle: { onTimeout: 'pause', autoResume: true } }

  test('wakes one that was made so', async () => {
    const sandbox = await create({ timeoutMs: 60_000, ...waking })
    const counter = await count(sandbox)
    await sandbox.setTimeout(0)
    await until('the sandbox to be paused', () => isPaused(sandbox))
    await counter.wentOn()
    const info = await sandbox.getInfo()
    expect(info.state).toBe('running')
    expect(info.endAt.getTime() - info.startedAt.getTime()).toBeGreaterThan(299_000)
  })

  test('wakes it once however much there is', async () => {
    const sandbox = await create(waking)
    const counter = await count(sandbox)
    await sandbox.pause()
    const answers = await Promise.all([...Array(20)].map(() => get(hostOf(sandbox, 8000))))
    expect(answers.map((answer) => answer.status)).toEqual(Array(20).fill(200))
    await counter.wentOn()
  })

  test('of the SDK wakes it too', async () => {
    const sandbox = await create(waking)
    await sandbox.pause()
    expect((await sandbox.commands.run('echo awake')).stdout).toBe('awake\n')
  })

  test('without credentials does not reach envd', async () => {
    const sandbox = await create(waking)
    await sandbox.pause()
    expect((await get(hostOf(sandbox, 49983), '/health')).status).toBe(403)
    expect(await isPaused(sandbox)).toBe(true)
  })

  test('wakes no other', async () => {
    const sandbox = await create({ lifecycle: { onTimeout: 'pause' } })
    await count(sandbox)
    await sandbox.pause()
    const answer = await get(hostOf(sandbox, 8000))
    expect(answer.status).toBe(502)
    expect(JSON.parse(answer.body)).toEqual({
      sandboxId: sandbox.sandboxId,
      message: 'The sandbox was not found',
      code: 502,
    })
  })
})
