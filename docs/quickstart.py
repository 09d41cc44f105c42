"""The Python API in one script; it runs as it stands, on embedded data, and leaves nothing behind."""

import numpy as np

import fedplatform as fp

# Ten hospitals, three of them Byzantine, under the min-max attack; the trust rule decides whom to believe.
result = fp.run(data="lesions", size=32, scans=400, hospitals=10, byzantine=3, attack="min_max", rule="trust", rounds=3)
print(result.rounds[["accuracy", "auc"]])
result.report()

# Rules against attacks, beside a nearest neighbour and central training.
table = fp.compare(result.experiment, rules=["mean", "trust"], attacks=["none", "min_max"], seeds=[0])
print(table)

# A defence for each hospital; the preset "smoke" trains for seconds and is worth nothing.
defence = fp.defend(result, preset="smoke")["hospital-00"]
scans, labels = result.scans("hospital-00", role="test")
print(defence.diagnose(scans[:8])[0])
attacked = fp.attacks.PGD(epsilon=8 / 255, steps=10)(defence.logits, scans[:8], labels[:8])
print(fp.evaluate(result, tiers=["T0", "T2"], scans=16))

# A rule without a federation; lists, numpy and torch will do.
rng = np.random.default_rng(0)
print(fp.aggregate(fp.TrimmedMean(f=3), rng.normal(size=(10, 1000))))

# Scans in memory, in this process and on Ray.
mine = fp.from_arrays(rng.random((120, 1, 32, 32)), rng.integers(0, 2, 120), groups=np.arange(120) // 2)
fp.run(data=mine, hospitals=3, byzantine=0, rule="mean", rounds=1)
with fp.Ray("local") as ray:
    fp.run(data=mine, hospitals=3, byzantine=0, rule="mean", rounds=1, engine=ray)
