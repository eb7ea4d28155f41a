// The code interpreter: what cells print, timeouts, and what becomes of the kernel.

import { TimeoutError, type OutputMessage, type Result, type Sandbox } from '@e2b/code-interpreter'
import { beforeAll, expect, test } from 'vitest'

import { create, latched, shared, stillWorks } from './interpreter'

let sandbox: Sandbox

beforeAll(async () => {
  sandbox = await shared()
  return () => sandbox.kill()
})

// Rules: INT-17, INT-19, INT-20
test('everything is told in order', async () => {
  const told: [string, unknown][] = []
  // One write for each line, so that it is told in one piece.
  const code = `
import sys
print("one\\n", end="", flush=True)
print("two\\n", end="", file=sys.stderr, flush=True)
display(3)
print("four\\n", end="", flush=True)
raise ValueError("five")
`
  const execution = await sandbox.runCode(code, {
    onStdout: (message: OutputMessage) => void told.push([message.error ? 'err' : 'out', message.line]),
    onStderr: (message: OutputMessage) => void told.push([message.error ? 'err' : 'out', message.line]),
    onResult: (result: Result) => void told.push(['result', result.text]),
    onError: (error) => void told.push(['error', error.name]),
  })
  expect(told).toEqual([
    ['out', 'one\n'],
    ['err', 'two\n'],
    ['result', '3'],
    ['out', 'four\n'],
    ['error', 'ValueError'],
  ])
  expect(execution.logs).toEqual({ stdout: ['one\n', 'four\n'], stderr: ['two\n'] })
})

// Rules: INT-17
test('a line of the console is a message', async () => {
  const code = "console.log('a', { b: [1] }); console.log('c\\nd'); console.error('e')"
  const execution = await sandbox.runCode(code, { language: 'js' })
  expect(execution.logs).toEqual({ stdout: ['a { b: [ 1 ] }\n', 'c\nd\n'], stderr: ['e\n'] })
})

// Rules: INT-17
test('no character is lost where an answer is cut into parts', async () => {
  const execution = await sandbox.runCode("print('環礁é🐚' * 100_000)")
  expect(execution.logs.stdout.join('')).toBe('環礁é🐚'.repeat(100_000) + '\n')
})

// Rules: INT-17
test.each(Object.keys(latched))('output of %s is there while the cell runs', async (language) => {
  const path = `/tmp/heard-${language}`
  const execution = await sandbox.runCode(latched[language](path), {
    language,
    onStdout: async () => void (await sandbox.files.write(path, '')),
  })
  expect(execution.error).toBeUndefined()
  expect(execution.logs.stdout).toEqual(['begun\n'])
})

// Rules: INT-17
test('any text arrives', async () => {
  const text = 'a\u2028b\u2029c\u0085d\u000be\u0000f\rg\u007fh\ufeffi\u{1f980}\u001b[31mj'
  await sandbox.files.write('/tmp/text', text)
  const python = await sandbox.runCode("print(open('/tmp/text', newline='').read(), end='')")
  expect(python.logs.stdout.join('')).toBe(text)
  const code = "process.stdout.write(require('fs').readFileSync('/tmp/text', 'utf8'))"
  const javascript = await sandbox.runCode(code, { language: 'js' })
  expect(javascript.logs.stdout.join('')).toBe(text)
})

// Rules: INT-21
test('much output', async () => {
  const code = "for n in range(20_000): print(n)\nprint('x' * 10_000_000)"
  const execution = await sandbox.runCode(code, { timeoutMs: 60_000 })
  const lines = Array.from({ length: 20_000 }, (_, n) => `${n}\n`).join('')
  const printed = execution.logs.stdout.join('')
  expect(printed.length).toBe(lines.length + 10_000_001)
  expect(printed.startsWith(lines)).toBe(true)
  expect(printed.slice(lines.length)).toBe('x'.repeat(10_000_000) + '\n')
})

// Rules: INT-25
test.each([
  ['python', 'import time; time.sleep(300)', 'x = 42', 'print(x)'],
  ['python', 'while True: pass', 'x = 42', 'print(x)'],
  ['javascript', 'for (;;) {}', '', 'console.log(42)'],
  ['javascript', 'await new Promise(() => setTimeout(() => {}, 300_000))', '', 'console.log(42)'],
  ['bash', 'sleep 300', 'x=42', 'echo $x'],
])('%s after a timeout of: %s', async (language, endless, keep, ask) => {
  const context = await sandbox.createCodeContext({ language })
  await sandbox.runCode(keep, { context })
  await expect(sandbox.runCode(endless, { context, timeoutMs: 1_500 })).rejects.toThrow(TimeoutError)
  const execution = await sandbox.runCode(ask, { context, timeoutMs: 60_000 })
  expect(execution.error).toBeUndefined()
  expect(execution.logs.stdout.join('')).toBe('42\n')
})

// Rules: INT-24
test('while one context is busy, others answer', async () => {
  const path = '/tmp/busy'
  const context = await sandbox.createCodeContext()
  let begin = () => {}
  const begun = new Promise<void>((resolve) => (begin = resolve))
  const running = sandbox.runCode(latched.python(path), { context, onStdout: begin })
  await begun
  await stillWorks(sandbox)
  expect((await sandbox.runCode('1 + 1', { language: 'js' })).text).toBe('2')
  await sandbox.files.write(path, '')
  expect((await running).error).toBeUndefined()
})

// Rules: INT-24
test('one cell at a time in a context', async () => {
  const context = await sandbox.createCodeContext()
  await sandbox.runCode('import time; running = 0', { context })
  const code = 'running += 1; time.sleep(0.01); was = running; running -= 1; was'
  const cells = await Promise.all(Array.from({ length: 12 }, () => sandbox.runCode(code, { context })))
  expect(cells.map((cell) => cell.text)).toEqual(Array(12).fill('1'))
  const counts = cells.map((cell) => cell.executionCount ?? 0).sort((a, b) => a - b)
  expect(counts).toEqual(Array.from({ length: 12 }, (_, n) => n + 2))
})

// Rules: INT-30
test.each([
  ['python', 'import os; os.kill(os.getpid(), 9)'],
  ['javascript', 'process.kill(process.pid, "SIGKILL"); for (;;) {}'],
  ['bash', 'kill -9 $$'],
])('a kernel of %s that dies', async (language, code) => {
  const execution = await sandbox.runCode(code, { language, timeoutMs: 60_000 })
  expect(execution.error?.name).toBe('ContextRestarting')
  expect(execution.error?.value).toMatch(/^Context was restarted/)
  const ask = language === 'bash' ? 'echo 2' : '1 + 1'
  const after = await sandbox.runCode(ask, { language, timeoutMs: 60_000 })
  expect(after.error).toBeUndefined()
  expect((after.text ?? after.logs.stdout.join('')).trim()).toBe('2')
})

// Rules: INT-33
test('a pause keeps variables', async () => {
  const own = await create()
  await own.runCode('x = 42')
  await own.runCode('globalThis.x = 42', { language: 'js' })
  // The older release had it as a beta.
  const pausing = own as unknown as { pause?: () => Promise<unknown>; betaPause: () => Promise<unknown> }
  await (pausing.pause ? pausing.pause() : pausing.betaPause())
  await own.connect()
  expect((await own.runCode('x', { timeoutMs: 60_000 })).text).toBe('42')
  expect((await own.runCode('x', { language: 'js', timeoutMs: 60_000 })).text).toBe('42')
})
