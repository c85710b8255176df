// Package salvage finds, by trying, which parts of a resource a proxy refuses: so
// that one bad route does not keep the others of its host from serving. It is pure:
// somebody else makes the versions, sends them and says what the answer was.
package salvage

import (
	"maps"
	"slices"
)

// maxAlone bounds the tries of phaseAlone.
const maxAlone = 64

type phase int

const (
	// phasePoint holds what the words of the refusals point to.
	phasePoint phase = iota
	// phaseAlone holds one part at a time, the most suspicious first. It is for parts
	// of which no form is known that was accepted: what is held is not served then,
	// so as little as possible is.
	phaseAlone
	// phaseSplit lets parts go in halves: what is accepted stays.
	phaseSplit
	// phaseFinal tries what was found.
	phaseFinal
	phaseDone
)

// Search is the search for the bad parts among the suspects of one refused version.
// Hold says what to send next, Answer takes what came of it, until Done.
type Search struct {
	suspects []string
	known    bool
	point    func(words string) string
	phase    phase
	alone    int // the next suspect in phaseAlone
	words    string
	// free are the suspects that were accepted.
	free map[string]bool
	// queue are the groups that were not tried yet, and trying is the first of them.
	queue  [][]string
	trying []string
	bad    map[string]string
	out    bool
	failed bool
	tries  int
}

// Start begins a search: a version was refused, with these words, and the suspects
// are the parts of it that may be why, the most suspicious first. known tells that
// instead of a suspect there is something to serve: the form of it that was accepted
// before, or what was before it was there. point returns the one suspect that words
// point to, "" for none; it may be nil.
func Start(suspects []string, known bool, words string, point func(words string) string) *Search {
	s := &Search{
		suspects: slices.Clone(suspects), known: known, point: point, words: words,
		free: map[string]bool{}, bad: map[string]string{},
	}
	switch {
	case len(suspects) == 0:
		s.phase, s.failed = phaseDone, true
	case len(suspects) == 1:
		s.bad[suspects[0]] = words
		s.phase = phaseFinal
	case !s.pointed(words):
		s.unaided()
	}
	return s
}

// pointed takes the suspect that words point to.
func (s *Search) pointed(words string) bool {
	if s.point == nil {
		return false
	}
	name := s.point(words)
	if _, held := s.bad[name]; held || !slices.Contains(s.suspects, name) {
		return false
	}
	s.bad[name] = words
	return true
}

// unaided begins the search without words.
func (s *Search) unaided() {
	clear(s.bad)
	if s.known {
		s.split(s.suspects)
	} else {
		s.phase = phaseAlone
	}
}

// Done tells that nothing more is to be tried.
func (s *Search) Done() bool { return s.phase == phaseDone }

// Failed tells that the version is refused even without all suspects: it is not they.
func (s *Search) Failed() bool { return s.failed }

// Out tells that held parts without a form from before have nothing of their own in
// the version to send, not even their match: so it is while the search goes on, and
// in the end where what would stand in their place is refused, too.
func (s *Search) Out() bool { return s.out || s.phase < phaseFinal }

// Tries is how many answers there were.
func (s *Search) Tries() int { return s.tries }

// Bad are the parts that were found, with the words they were refused with.
func (s *Search) Bad() map[string]string { return maps.Clone(s.bad) }

// Hold are the suspects to be held back in the version to send now, sorted; when the
// search is done, for good, and none when it failed.
func (s *Search) Hold() []string {
	var out []string
	for i, name := range s.suspects {
		var hold bool
		switch s.phase {
		case phaseAlone:
			hold = i == s.alone
		case phaseSplit:
			hold = !s.free[name] && !slices.Contains(s.trying, name)
		default:
			_, hold = s.bad[name]
		}
		if hold && !s.failed {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// Answer takes in what proxies said of the version that Hold described. words are
// theirs when it was refused.
func (s *Search) Answer(refused bool, words string) {
	s.tries++
	switch s.phase {
	case phasePoint:
		if !refused {
			s.phase = phaseFinal
		} else if s.words = words; !s.pointed(words) {
			s.unaided()
		}
	case phaseAlone:
		s.answerAlone(refused, words)
	case phaseSplit:
		s.answerSplit(refused, words)
	case phaseFinal:
		switch {
		case !refused:
			s.phase = phaseDone
		case !s.out:
			s.out = true
		default:
			s.phase, s.failed = phaseDone, true
		}
	}
}

func (s *Search) answerAlone(refused bool, words string) {
	if !refused {
		s.bad[s.suspects[s.alone]] = s.words
		s.phase = phaseFinal
		return
	}
	s.words = words
	if s.alone++; s.alone == min(len(s.suspects), maxAlone) {
		s.split(s.suspects)
	}
}

func (s *Search) answerSplit(refused bool, words string) {
	switch {
	case !refused:
		for _, name := range s.trying {
			s.free[name] = true
		}
		s.next()
	case len(s.trying) == 1:
		s.bad[s.trying[0]] = words
		s.next()
	default:
		s.split(s.trying)
	}
}

// split queues the halves of a group.
func (s *Search) split(group []string) {
	s.phase = phaseSplit
	half := len(group) / 2
	s.queue = append([][]string{group[:half], group[half:]}, s.queue...)
	s.next()
}

// next takes the next group, or ends the phase.
func (s *Search) next() {
	if len(s.queue) == 0 {
		s.trying, s.phase = nil, phaseFinal
		return
	}
	s.trying, s.queue = s.queue[0], s.queue[1:]
}
