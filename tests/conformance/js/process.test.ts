// What commands rely on beyond everyday use.

import {
  AuthenticationError,
  CommandExitError,
  InvalidArgumentError,
  TimeoutError,
  type CommandHandle,
  type Sandbox,
} from 'e2b'
import { beforeAll, expect, test } from 'vitest'

import { before, shared, until } from './support'

let sandbox: Sandbox
beforeAll(async () => {
  sandbox = await shared()
  return () => sandbox.kill()
})

/** How a command failed. */
async function failure(outcome: Promise<unknown>): Promise<CommandExitError> {
  const error = await outcome.catch((error: unknown) => error)
  expect(error).toBeInstanceOf(CommandExitError)
  return error as CommandExitError
}

const listed = async (pid: number) =>
  (await sandbox.commands.list()).some((process) => process.pid === pid)

const background = (command: string, options: object = {}): Promise<CommandHandle> =>
  sandbox.commands.run(command, { background: true, timeoutMs: 0, ...options })

// Rules: PROC-37, PROC-36, TRAP-9, TRAP-48
test('codes and signals by name', async () => {
  for (const [number, name] of [[1, 'hangup'], [6, 'aborted'], [9, 'killed'], [15, 'terminated']]) {
    const failed = await failure(sandbox.commands.run(`exec sh -c 'kill -${number} $$'`))
    expect([failed.exitCode, failed.error]).toEqual([-1, `signal: ${name}`])
  }
  const failed = await failure(sandbox.commands.run('exit 126'))
  expect([failed.exitCode, failed.error]).toEqual([126, 'exit status 126'])
})

// Rules: PROC-17, PROC-18, PROC-21, PROC-27
test('what cannot be started', async () => {
  const run = (command: string, options: object = {}) => sandbox.commands.run(command, options)
  await expect(run('true', { cwd: '/no/such' })).rejects.toThrow(InvalidArgumentError)
  await expect(run('true', { cwd: '/root' })).rejects.toThrow(InvalidArgumentError)
  await expect(run('echo a\0b')).rejects.toThrow(InvalidArgumentError)
  await expect(run('true', { user: '1000' })).rejects.toThrow(AuthenticationError)
})

// Rules: PROC-31, PROC-43, PROC-61
test('several followers, and one who is late', async () => {
  const first = await background(
    'until [ -e /tmp/all-there ]; do sleep 0.05; done; seq 1000; exit 6',
  )
  const others = await Promise.all([1, 2, 3].map(() => sandbox.commands.connect(first.pid)))
  await sandbox.files.write('/tmp/all-there', '')
  const expected = Array.from({ length: 1000 }, (_, n) => `${n + 1}\n`).join('')
  for (const handle of [first, ...others]) {
    const failed = await failure(handle.wait())
    expect([failed.exitCode, failed.stdout]).toEqual([6, expected])
  }
  const late = await failure((await sandbox.commands.connect(first.pid)).wait())
  expect([late.exitCode, late.stdout]).toEqual([6, ''])
})

// Rules: PROC-44, PROC-45, TRAP-8
test('the timeout of a run ends the process', async () => {
  const followed = await background('sleep 600', { timeoutMs: 5000 })
  await expect(followed.wait()).rejects.toThrow(TimeoutError)
  await until('its end', async () => !(await listed(followed.pid)))
  const left = await background('sleep 600', { timeoutMs: 5000 })
  await left.disconnect()
  await until('its end', async () => !(await listed(left.pid)))
  expect((await failure((await sandbox.commands.connect(left.pid)).wait())).error).toBe(
    'signal: killed',
  )
})

// Rules: PROC-46, TRAP-8
test('the timeout of a connect ends the stream only', async () => {
  const started = await background('until [ -e /tmp/go-on ]; do sleep 0.05; done; echo went on')
  const connected = sandbox.commands.connect(started.pid, { timeoutMs: 1000 })
  await expect(connected.then((handle) => handle.wait())).rejects.toThrow(TimeoutError)
  expect(await listed(started.pid)).toBe(true)
  await sandbox.files.write('/tmp/go-on', '')
  expect((await started.wait()).stdout).toBe('went on\n')
})

// Rules: PROC-29
test.skipIf(before('2.30.1'))('a character may come in two pieces', async () => {
  let seen = ''
  const handle = await background(
    "printf 'x\\303'; until [ -e /tmp/rest ]; do sleep 0.05; done; printf '\\251'",
    { onStdout: (chunk: string) => void (seen += chunk) },
  )
  await until('the first piece', async () => seen.startsWith('x'))
  await sandbox.files.write('/tmp/rest', '')
  expect((await handle.wait()).stdout).toBe('xé')
})

// Rules: PROC-40, PROC-42, PROC-65
test('a kill amid output', async () => {
  let seen = 0
  const handle = await background('while echo x; do :; done', {
    onStdout: (chunk: string) => void (seen += chunk.length),
  })
  const failed = failure(handle.wait())
  await until('output', async () => seen > 0)
  expect(await handle.kill()).toBe(true)
  expect([(await failed).exitCode, (await failed).error]).toEqual([-1, 'signal: killed'])
  expect(await listed(handle.pid)).toBe(false)
  expect(await sandbox.commands.kill(handle.pid)).toBe(false)
})

// Rules: PROC-24, PROC-25, PROC-54, TRAP-11
test('standard input: none, open, closed', async () => {
  expect((await sandbox.commands.run('cat; echo over', { stdin: false })).stdout).toBe('over\n')
  const open = await background('cat', { stdin: true })
  await sandbox.commands.sendStdin(open.pid, 'all there is')
  expect(await listed(open.pid)).toBe(true)
  if (typeof sandbox.commands.closeStdin === 'function') {
    await sandbox.commands.closeStdin(open.pid)
    expect((await open.wait()).stdout).toBe('all there is')
  } else {
    expect(before('2.51.0')).toBe(true)
    await open.kill()
  }
})

// Rules: PROC-30
test('thirty megabytes of output', async () => {
  let received = 0
  const result = await sandbox.commands.run('head -c 30M /dev/zero | tr "\\0" x; echo err >&2', {
    onStdout: (chunk) => void (received += chunk.length),
  })
  expect(received).toBe(30 << 20)
  expect(result.stderr).toBe('err\n')
})

// Rules: PROC-60, PROC-43
test('a hundred at once', async () => {
  const handles = await Promise.all(
    Array.from({ length: 100 }, (_, n) =>
      background(`until [ -e /tmp/go ]; do sleep 0.5; done; echo ${n}`),
    ),
  )
  const pids = (await sandbox.commands.list()).map((process) => process.pid)
  expect(pids).toEqual(expect.arrayContaining(handles.map((handle) => handle.pid)))
  await sandbox.files.write('/tmp/go', '')
  const results = await Promise.all(handles.map((handle) => handle.wait()))
  expect(results.map((result) => result.stdout)).toEqual(results.map((_, n) => `${n}\n`))
})
