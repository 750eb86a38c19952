"""In words: what each check of a certification means, and what none of them covers."""

#: Name of a check -> what it says.
PROMISES = {
    "results readable": "results.jsonl holds whole records of finite numbers.",
    "condition known": "The condition is one whose promises this program knows.",
    "files belong to this run": "run.json, results.jsonl and the tasks' names agree, no folder of adapters is without "
    "a record, and all CRMA states have the protocol's sizes and the same base model's architecture.",
    "records agree with the protocol": "The configuration is a protocol, and every record speaks of its conditions, "
    "seeds, tasks, panel and counts; the conditions saw the same batches.",
    "records as training writes them": "Each phase logged the steps that the protocol asks for, a gradient norm per "
    "step, losses of the tasks it had seen, and as many parameters as its files hold; FROZEN starts each task as the "
    "bare model.",
    "holdout matrix complete": "Every phase is recorded, with a positive finite holdout loss of every task seen.",
    "drift exactly 0, nats": "The largest |H[p, j] - H[j, j]| over all phases p and tasks j is 0, bit for bit.",
    "drift of every task, %": "No prior task's holdout loss rose by more than the limit asked for with --max-drift.",
    "versions as decided": "Each task answers with the version of the CRMA that the losses on its decision split "
    "choose: it moves to a later one exactly where its loss there is not higher. One not measured keeps its own.",
    "history readable": "history.jsonl holds whole records of finite numbers, in the order in which they were written.",
    "promises kept": "After each phase that was given a promise, no earlier task that was measured had lost more on "
    "its reported texts than promised, or than it had lost before.",
    "drift, %": "Mean drift over the prior tasks: shown, not promised.",
    "certificates logged": "Every phase logged the spectrum of the shared adapter (with a budget, its displacement).",
    "norm of M, logged": "Largest spectral norm of the mixing matrix over layers and logged steps.",
    "norm of adapter, logged": "Largest singular value of the whole adapter over layers and logged steps.",
    "displacement, logged": "Largest spectral norm of the adapter's change since the anchor (its state after the first "
    "task), over layers and logged steps; at most the budget, up to rounding of the stored values.",
    "spectral bounds": "Not applicable: nothing in this condition is bounded.",
    "adapter files whole": "The adapter of every task can be read, all its numbers are finite, all have one shape, and "
    "its settings are the protocol's.",
    "files as recorded": "Every file of a finished phase has the SHA-256 that its record holds.",
    "model file whole": "The model that answers after the last task can be read, and all its numbers are finite.",
    "state files whole": "Every stored CRMA state can be read, matches its checksum and is finite.",
    "stored states measurable": "All stored states have the same sizes and can be measured.",
    "sums of M − 1, stored": "Largest error of a row or column sum of M, computed in float32 from the stored states.",
    "norm of M, stored": "Largest spectral norm of M, computed in float32 from the stored states.",
    "norm of adapter, stored": "Largest singular value of the whole adapter, with the float32 M of the stored states.",
    "sums of M − 1, float64": "The same by the reference in float64.",
    "norm of M, float64": "The same by the reference in float64.",
    "norm of adapter, float64": "The same by the reference in float64.",
    "stored states as logged": "Largest difference between the certificate of a stored state and the one logged "
    "at the last step of its phase.",
    "CRMA unchanged": "The stored states after all tasks have the same bits.",
    "basis unchanged": "The bases of the stored states after all tasks have the same bits.",
    "moment files whole": "Every stored moment of the streams of earlier tasks' tokens can be read.",
    "moments plausible": "What each phase added to the moment is symmetric, positive semidefinite and of a trace that "
    "the basis allows, and of as many tokens as the records say that its training texts have.",
    "data displacement, logged": "Largest root mean square of what the tokens of the tasks before saw, over layers and "
    "logged steps; at most the data budget, up to rounding of the stored values.",
    "data displacement as logged": "Largest difference between the data displacement of each stored state, measured "
    "with the stored moments, and what was logged at its phase's last step.",
    "data displacement, stored": "Largest root mean square, over the tokens of the tasks before it, of a layer's "
    "relative change since the anchor crma-0, by the reference in float64 from the stored states and moments: at most "
    "the data budget, up to rounding of the stored values. The worst case over all inputs is the displacement.",
    "displacement, stored": "Largest spectral norm of a layer's change since the anchor crma-0, by the reference in "
    "float64 from the stored states.",
    "displacement, any two": "The same between any two stored states: at most twice the budget.",
}
NOT_CHECKED = (
    "The holdout losses are taken from results.jsonl; nothing was trained or evaluated again.",
    "That a LoRA holds the numbers that were trained: it is read, it is finite, and it has the SHA-256 of its record.",
    "That the base model's weights and the tasks' texts are those whose fingerprints the run recorded.",
    "That a stored moment is that of the tasks' texts: it is read, it is plausible, and it has the recorded SHA-256.",
    "States between two logged steps. Of M and of the adapter the bound holds for every parameter value (Theorems 1 "
    "and 2 of the specification); a budget was applied after every step.",
    "A bound for the model as a whole: the bounds hold for each layer, for equal inputs of the layer.",
    "The quality of any answer, and drift on texts outside the holdout sets.",
)

#: What no check of files can know; the last words of every certification.
CANNOT_KNOW = (
    "No check of files can know whether these losses were measured on the named model and texts, or were written by "
    "somebody who afterwards made every record and digest fit.",
    "Only running the same command again, on the same model and texts, and comparing what it writes shows that.",
)
