-- Rows as revision 0001 wrote them; NOW stands for an instant.
INSERT INTO rounds VALUES ('r', 'test', NOW);
INSERT INTO prompts VALUES ('p', '{"messages": [{"role": "user", "content": "Hi"}], "tools": []}', NULL, '{}', NOW);
INSERT INTO raters VALUES ('ada', 'human', '{}', NOW);
INSERT INTO samples VALUES ('s0', 'p', 'r', 'rl', 'cd', 0, '{"max_tokens": 8}', '7', 'text 0', '[1]', 'stop', NOW);
INSERT INTO samples VALUES ('s1', 'p', 'r', 'rl', 'cd', 0, '{"max_tokens": 8}', '7', 'text 1', '[1]', 'stop', NOW);
INSERT INTO samples VALUES ('s2', 'p', 'r', 'rl', 'cd', 0, '{"max_tokens": 8}', '7', 'text 2', '[1]', 'stop', NOW);
INSERT INTO comparisons VALUES ('c2', 'p', 'r', 'train', NOW);
INSERT INTO comparisons VALUES ('c3', 'p', 'r', 'train', NOW);
INSERT INTO comparison_answers VALUES ('c2', 0, 's0');
INSERT INTO comparison_answers VALUES ('c2', 1, 's1');
INSERT INTO comparison_answers VALUES ('c3', 0, 's0');
INSERT INTO comparison_answers VALUES ('c3', 1, 's1');
INSERT INTO comparison_answers VALUES ('c3', 2, 's2');
INSERT INTO preferences VALUES (1, 'c2', 'ada', 'k1', '[[1], [0]]', 3, '1,0', 'why', 900, 0.5, NOW, NULL);
INSERT INTO preferences VALUES (2, 'c2', 'ada', 'k2', '[[0, 1]]', NULL, '0,1', '', NULL, 1.0, NOW, NOW);
INSERT INTO preferences VALUES (3, 'c3', 'ada', 'k3', '[[2], [0, 1]]', NULL, '0,1,2', '', NULL, 1.0, NOW, NULL);
INSERT INTO edits VALUES ('e', 's1', 'ada', 'a better text', NOW);
