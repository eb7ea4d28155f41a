import { CommandExitError, NotFoundError, TimeoutError, type Sandbox } from 'e2b'
import { beforeAll, expect, test } from 'vitest'

import { before, create, shared, until } from './support'

let sandbox: Sandbox
beforeAll(async () => {
  sandbox = await shared()
  return () => sandbox.kill()
})

// Rules: PROC-30
test('output and status', async () => {
  const result = await sandbox.commands.run('echo out; echo err >&2')
  expect([result.stdout, result.stderr, result.exitCode]).toEqual(['out\n', 'err\n', 0])
})

// Rules: PROC-8, PROC-36
test('a failing command throws with all it said', async () => {
  const failed = await sandbox.commands.run('echo out; exit 7').catch((error: unknown) => error)
  expect(failed).toBeInstanceOf(CommandExitError)
  expect((failed as CommandExitError).exitCode).toBe(7)
  expect((failed as CommandExitError).stdout).toBe('out\n')
})

// Rules: PROC-13, PROC-14, PROC-15
test('the default user, directory and variables', async () => {
  expect((await sandbox.commands.run('whoami; pwd')).stdout).toBe('user\n/home/user\n')
  expect((await sandbox.commands.run('whoami', { user: 'root' })).stdout).toBe('root\n')
  expect((await sandbox.commands.run('pwd', { cwd: '/tmp' })).stdout).toBe('/tmp\n')
  expect((await sandbox.commands.run('echo $X', { envs: { X: 'ü y' } })).stdout).toBe('ü y\n')
})

// Rules: STREAM-14, TRAP-5
test('output is streamed', async () => {
  let seen = ''
  const handle = await sandbox.commands.run(
    'echo first; until [ -e /tmp/seen ]; do sleep 0.05; done; echo second',
    { background: true, onStdout: (chunk) => void (seen += chunk) },
  )
  await until('the first line', async () => seen.includes('first'))
  await sandbox.files.write('/tmp/seen', '')
  expect((await handle.wait()).stdout).toBe('first\nsecond\n')
})

// Rules: PROC-44
test('timeout', async () => {
  await expect(sandbox.commands.run('sleep 600', { timeoutMs: 1000 })).rejects.toThrow(TimeoutError)
})

// Rules: PROC-60, PROC-43, PROC-62, PROC-65
test('background commands are listed, connected to and killed', async () => {
  const handle = await sandbox.commands.run('sleep 600', { background: true })
  const listed = await sandbox.commands.list()
  expect(listed.map((process) => process.pid)).toContain(handle.pid)
  await handle.disconnect()
  const again = await sandbox.commands.connect(handle.pid)
  expect(await sandbox.commands.kill(handle.pid)).toBe(true)
  await expect(again.wait()).rejects.toThrow(CommandExitError)
  expect(await sandbox.commands.kill(handle.pid)).toBe(false)
  await expect(sandbox.commands.connect(999_999)).rejects.toThrow(NotFoundError)
})

// Rules: PROC-24, PROC-50
test('stdin', async () => {
  const handle = await sandbox.commands.run('head -n 2', { background: true, stdin: true })
  await sandbox.commands.sendStdin(handle.pid, 'one\n')
  await sandbox.commands.sendStdin(handle.pid, 'two\n')
  expect((await handle.wait()).stdout).toBe('one\ntwo\n')
})

// Rules: PROC-23, PROC-55
test('a terminal', async () => {
  let output = ''
  const decoder = new TextDecoder()
  const handle = await sandbox.pty.create({
    cols: 80,
    rows: 24,
    onData: (data) => void (output += decoder.decode(data)),
  })
  await sandbox.pty.resize(handle.pid, { cols: 132, rows: 50 })
  await sandbox.pty.sendInput(handle.pid, new TextEncoder().encode('stty size; exit\n'))
  expect((await handle.wait()).exitCode).toBe(0)
  expect(output).toContain('50 132')
})

// Rules: PROC-37
test('a killed terminal says so', async () => {
  const handle = await sandbox.pty.create({ cols: 80, rows: 24, onData: () => {} })
  expect(await sandbox.pty.kill(handle.pid)).toBe(true)
  const failed = await handle.wait().catch((error: unknown) => error)
  expect(failed).toBeInstanceOf(CommandExitError)
  expect((failed as CommandExitError).exitCode).toBe(-1)
})

// Before, the SDK passed on whatever its HTTP library said.
// Rules: PROXY-36, TRAP-2
test.skipIf(before('2.30.1'))('a killed sandbox ends its commands with a timeout error', async () => {
  const doomed = await create()
  const handle = await doomed.commands.run('sleep 600', { background: true, timeoutMs: 0 })
  const failed = handle.wait().catch((error: unknown) => error)
  await doomed.kill()
  expect(await failed).toBeInstanceOf(TimeoutError)
})

// Rules: PROXY-36
test('a command in a dead sandbox is not found', async () => {
  const dead = await create()
  await dead.kill()
  await expect(dead.commands.run('true')).rejects.toThrow(/not running anymore/)
})

test('commands run side by side', async () => {
  const numbers = [...Array(25).keys()]
  const results = await Promise.all(numbers.map((n) => sandbox.commands.run(`echo ${n}`)))
  expect(results.map((result) => result.stdout)).toEqual(numbers.map((n) => `${n}\n`))
})
