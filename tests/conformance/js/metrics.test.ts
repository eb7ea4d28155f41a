import { Sandbox } from 'e2b'
import { beforeAll, expect, test } from 'vitest'

import { before, shared, until } from './support'

let sandbox: Sandbox
beforeAll(async () => {
  sandbox = await shared()
  return () => sandbox.kill()
})

// Rules: METRICS-5
test('samples say what the sandbox has', async () => {
  const sample = await until('the first sample', async () => (await sandbox.getMetrics())[0], 30_000)
  expect((await Sandbox.getMetrics(sandbox.sandboxId))[0]).toEqual(sample)
  const cpus = Number((await sandbox.commands.run('nproc')).stdout)
  expect(sample.cpuCount).toBe(cpus)
  expect(sample.cpuUsedPct).toBeGreaterThanOrEqual(0)
  expect(sample.cpuUsedPct).toBeLessThanOrEqual(100)
  expect(sample.memUsed).toBeGreaterThan(0)
  expect(sample.memUsed).toBeLessThanOrEqual(sample.memTotal)
  expect(sample.diskUsed).toBeLessThan(sample.diskTotal)
  expect(Math.abs(Date.now() - sample.timestamp.getTime())).toBeLessThan(300_000)
})

// Older releases do not send the range.
// Rules: METRICS-5
test.skipIf(before('2.30.0'))('samples of a range', async () => {
  const enough = async () => {
    const samples = await sandbox.getMetrics()
    return samples.length >= 2 && samples
  }
  const [first, second] = await until('two samples', enough, 60_000)
  expect(second.timestamp.getTime()).toBeGreaterThan(first.timestamp.getTime())
  expect((await sandbox.getMetrics({ start: second.timestamp }))[0]).toEqual(second)
  expect(await sandbox.getMetrics({ end: first.timestamp })).toEqual([first])
  const earlier = new Date(first.timestamp.getTime() - 3_600_000)
  expect(await sandbox.getMetrics({ end: earlier })).toEqual([])
})
