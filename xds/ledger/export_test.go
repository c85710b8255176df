package ledger

// Slots is how many names are in use.
func (t *Table) Slots() (n int) {
	for k := range kinds {
		n += len(t.columns[k].index)
	}
	return n
}
